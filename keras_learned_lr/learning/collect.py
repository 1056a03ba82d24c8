"""Lets a policy act in an environment for an episode; a learner keeps what it did."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_learned_lr.learning import _tf_agents as tfa
from keras_learned_lr.learning.environment import TraineesEnvironment
from keras_learned_lr.learning.learner import ControllerLearner
from keras_learned_lr.learning.trainee_state import TraineesState

# Told of a decision: the time step before it, where the trainees stood then, what the
# policy did, and the time step after it.
OnDecision = Callable[[Any, TraineesState, Any, Any], None]


def steer(
    environment: TraineesEnvironment,
    policy: Any,
    act: Callable[[Any, Any], Any],
    on_decision: OnDecision,
) -> np.ndarray:
    """Lets a policy steer every trainee of an environment from beginning to end.

    Args:
        environment: Draws the trainees.
        policy: A `TFPolicy`; gives the state before the first decision.
        act: Its action, as a tf.function.
        on_decision: Called after each decision.

    Returns:
        The loss on the scoring rows at the end, `[batch]`, NaN where diverged.
    """
    now = environment.reset()
    memory = policy.get_initial_state(environment.batch_size)
    while not now.is_last().all():
        stood = environment.state
        assert stood is not None
        chosen = act(now, memory)
        following = environment.step(chosen.action.numpy())
        on_decision(now, stood, chosen, following)
        now, memory = following, chosen.state
    return environment.score()


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

    def keep(now: Any, _: TraineesState, chosen: Any, following: Any) -> None:
        learner.observe(tfa.trajectory.from_transition(now, chosen, following))

    return steer(environment, learner.collect_policy, act, keep)
