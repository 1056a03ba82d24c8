"""How a controller learns. Needs `pip install "keras_learned_lr[train]"`."""

from keras_learned_lr.learning.config import LearnerConfig
from keras_learned_lr.learning.learner import ControllerLearner
from keras_learned_lr.learning.meta_config import MetaTrainConfig, read_config
from keras_learned_lr.learning.meta_train import MetaTraining
from keras_learned_lr.learning.policies import PolicyController, load_policy_saver
from keras_learned_lr.learning.rewards import (
    InverseValidationLoss,
    LogImprovement,
    NegativeValidationLoss,
    Reward,
)
from keras_learned_lr.learning.task_stream import make_environment
from keras_learned_lr.learning.tasks import Data, TaskFamily, family

__all__ = [
    "ControllerLearner",
    "Data",
    "InverseValidationLoss",
    "LearnerConfig",
    "LogImprovement",
    "MetaTrainConfig",
    "MetaTraining",
    "NegativeValidationLoss",
    "PolicyController",
    "Reward",
    "TaskFamily",
    "family",
    "load_policy_saver",
    "make_environment",
    "read_config",
]
