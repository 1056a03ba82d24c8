"""A Keras callback that lets a small neural network set the learning rate."""

from keras_learned_lr._version import __version__
from keras_learned_lr.callback import LearnedLearningRate
from keras_learned_lr.control.actions import (
    AnchoredScaleFactor,
    DirectLearningRate,
    LogLearningRate,
    ScaleFactor,
)
from keras_learned_lr.control.saved_model import load_controller, shipped_controllers
from keras_learned_lr.observation.features import ObservationSpec
from keras_learned_lr.plotting import plot_decisions

__all__ = [
    "AnchoredScaleFactor",
    "DirectLearningRate",
    "LearnedLearningRate",
    "LogLearningRate",
    "ObservationSpec",
    "ScaleFactor",
    "__version__",
    "load_controller",
    "plot_decisions",
    "shipped_controllers",
]
