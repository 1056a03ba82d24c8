"""Runs of a made-up trainee through `begin_episode`, `record` and `end_episode`."""

import numpy as np
import tensorflow as tf

from keras_learned_lr.control.controller import Decision
from keras_learned_lr.learning import ControllerLearner, LearnerConfig

FEATURES = ("log_level", "progress")


def small(**settings) -> LearnerConfig:
    """Returns a config that is quick to build."""
    return LearnerConfig(
        **{
            "observation": FEATURES,
            "hidden": (8,),
            "lstm_size": 4,
            "capacity": 64,
            "passes": 3,
            "episodes_per_update": 2,
            **settings,
        }
    )


def decide(learner, observation, state, loss, finite=True, first_loss=1.0):
    """Lets the learner act once; returns the decision and its next state."""
    observation = np.asarray(observation, np.float32)
    output = learner.act(tf.constant(observation)[None], state)
    info = tf.nest.map_structure(lambda leaf: leaf[0].numpy(), output.info)
    action = float(output.action[0])
    decision = Decision(observation, action, info, loss, first_loss, finite)
    return decision, output.state


class Run:
    """One run, decision by decision; its loss falls the faster, the nearer to 0.5."""

    def __init__(self, learner: ControllerLearner, seed: int) -> None:
        self.learner = learner
        self.noise = np.random.default_rng(seed)
        self.state = learner.initial_state(1)
        self.loss = 1.0
        self.decisions = []
        learner.begin_episode()

    def look(self, final: bool = False):
        seen = self.noise.uniform(-1, 1, 2)
        decision, self.state = decide(self.learner, seen, self.state, self.loss)
        self.decisions.append(decision)
        self.loss *= float(np.exp(-0.3 + (decision.action - 0.5) ** 2))
        learner = self.learner
        return learner.end_episode(decision) if final else learner.record(decision)


def episode(learner: ControllerLearner, seed: int, decisions: int = 4) -> Run:
    """Makes a whole run with so many applied actions."""
    run = Run(learner, seed)
    for _ in range(decisions):
        run.look()
    run.look(final=True)
    return run


def frames(learner: ControllerLearner):
    """Returns what is in the buffer, arrays `[batch, time, ...]`."""
    return tf.nest.map_structure(lambda x: x.numpy(), learner.buffer.gather_all())


def weights(learner: ControllerLearner) -> list[np.ndarray]:
    """Returns all weights of actor and critic."""
    parts = learner.parts
    return [v.numpy() for v in (*parts.actor.variables, *parts.critic.variables)]
