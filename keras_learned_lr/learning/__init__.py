"""How a controller learns. Needs `pip install "keras_learned_lr[train]"`."""

from keras_learned_lr.learning.config import LearnerConfig
from keras_learned_lr.learning.learner import ControllerLearner
from keras_learned_lr.learning.policies import PolicyController, load_policy_saver
from keras_learned_lr.learning.rewards import (
    InverseValidationLoss,
    LogImprovement,
    NegativeValidationLoss,
    Reward,
)

__all__ = [
    "ControllerLearner",
    "InverseValidationLoss",
    "LearnerConfig",
    "LogImprovement",
    "NegativeValidationLoss",
    "PolicyController",
    "Reward",
    "load_policy_saver",
]
