"""A Keras callback that lets a small neural network set the learning rate."""

from keras_learned_lr._version import __version__
from keras_learned_lr.callback import LearnedLearningRate
from keras_learned_lr.control.actions import (
    AnchoredScaleFactor,
    DirectLearningRate,
    LogLearningRate,
    ScaleFactor,
)
from keras_learned_lr.control.controller import ServingError
from keras_learned_lr.control.remote import GrpcController, RestController
from keras_learned_lr.control.saved_model import load_controller, shipped_controllers
from keras_learned_lr.observation.spec import ObservationSpec
from keras_learned_lr.plotting import plot_decisions

__all__ = [
    "AnchoredScaleFactor",
    "DirectLearningRate",
    "GrpcController",
    "LearnedLearningRate",
    "LogLearningRate",
    "ObservationSpec",
    "RestController",
    "ScaleFactor",
    "ServingError",
    "__version__",
    "load_controller",
    "plot_decisions",
    "shipped_controllers",
]
