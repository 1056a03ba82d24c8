"""Lets a learner act in an environment for an episode and keep what it did."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_learned_lr.learning import _tf_agents as tfa
from keras_learned_lr.learning.environment import TraineesEnvironment
from keras_learned_lr.learning.learner import ControllerLearner


def collect_episode(
    environment: TraineesEnvironment,
    learner: ControllerLearner,
    act: Callable[[Any, Any], Any],
) -> np.ndarray:
    """Puts one episode of every trainee into the learner's replay buffer.

    Args:
        environment: Of the learner's batch size.
        learner: What learns.
        act: The action of the learner's collect policy, as a tf.function.

    Returns:
        The loss on the scoring rows at the end, `[batch]`, NaN where diverged.
    """
    now = environment.reset()
    state = learner.collect_policy.get_initial_state(environment.batch_size)
    while not now.is_last().all():
        chosen = act(now, state)
        following = environment.step(chosen.action.numpy())
        learner.observe(tfa.trajectory.from_transition(now, chosen, following))
        now, state = following, chosen.state
    return environment.score()
