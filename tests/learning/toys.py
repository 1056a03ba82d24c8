"""Solvable toys: batched TF-Agents environments whose best return is known."""

import tensorflow as tf

from keras_learned_lr.learning import ControllerLearner
from keras_learned_lr.learning import _tf_agents as tfa

FEATURES = ("log_level", "progress")
# A greedy controller that earns this share of the best return has learned the toy.
LEARNED = 0.9


class Toy(tfa.tf_environment.TFEnvironment):
    """Pays up to 1 a step for the right action; `steps` steps an episode.

    `target` names what the best action depends on: "constant" (always 0.6), "feature"
    (0.7 times the first feature, which changes at every step) or "memory" (0.7 times
    the sign of the first feature of the first step, which is 0 later).
    """

    def __init__(self, target: str, batch_size: int = 64, steps: int = 6) -> None:
        observation = tfa.tensor_spec.TensorSpec((2,), tf.float32, "observation")
        action = tfa.tensor_spec.BoundedTensorSpec((), tf.float32, -1.0, 1.0, "action")
        super().__init__(tfa.time_step.time_step_spec(observation), action, batch_size)
        self._target, self._steps, self._size = target, steps, batch_size
        self._random = tf.random.Generator.from_seed(7)
        self._at = tf.Variable(0)
        self._cue = tf.Variable(tf.zeros([batch_size]))
        self._seen = tf.Variable(tf.zeros([batch_size, 2]))
        self._paid = tf.Variable(tf.zeros([batch_size]))

    def _current_time_step(self):
        first, last = self._at == 0, self._at == self._steps
        kind = tf.where(first, 0, tf.where(last, 2, 1))
        return tfa.time_step.TimeStep(
            tf.fill([self._size], kind),
            tf.identity(self._paid),
            tf.fill([self._size], tf.where(last, 0.0, 1.0)),
            tf.identity(self._seen),
        )

    def _show(self):
        cue = self._random.uniform([self._size], -1.0, 1.0)
        if self._target == "memory":
            cue = tf.where(self._at == 0, tf.sign(cue), tf.zeros_like(cue))
        progress = tf.fill([self._size], tf.cast(self._at, tf.float32) / self._steps)
        self._seen.assign(tf.stack([cue, progress], -1))
        if self._target == "memory":
            self._cue.assign(tf.where(self._at == 0, cue, self._cue))
        else:
            self._cue.assign(cue)

    def _reset(self):
        self._at.assign(0)
        self._paid.assign(tf.zeros([self._size]))
        self._show()
        return self._current_time_step()

    def _step(self, action):
        return tf.cond(self._at == self._steps, self._reset, lambda: self._pay(action))

    def _pay(self, action):
        best = 0.6 if self._target == "constant" else 0.7 * self._cue
        off = tf.clip_by_value(action, -1.0, 1.0) - best
        self._paid.assign(tf.exp(-tf.square(off / 0.35)))
        self._at.assign_add(1)
        self._show()
        return self._current_time_step()


def collect_and_learn(learner: ControllerLearner, toy: Toy, updates: int) -> None:
    """Makes `updates` updates, one episode of each trainee before each."""
    driver = tfa.dynamic_episode_driver.DynamicEpisodeDriver(
        toy,
        learner.collect_policy,
        observers=[learner.add],
        num_episodes=learner.batch_size,
    )
    collect = tf.function(lambda: driver.run(toy.reset()), autograph=False)
    for _ in range(updates):
        collect()
        learner.train_if_due()


def score(learner: ControllerLearner, toy: Toy) -> float:
    """Returns the greedy controller's share of the best return."""
    controller = learner.greedy()
    act = tf.function(controller.act)
    step = tf.function(toy.step, autograph=False)
    state = controller.initial_state(toy.batch_size)
    now, total = toy.reset(), 0.0
    while not now.is_last()[0]:
        output = act(now.observation, state)
        state, now = output.state, step(output.action)
        total += float(tf.reduce_mean(now.reward))
    return total / toy._steps
