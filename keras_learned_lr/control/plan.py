"""The learning rates of the coming steps, computed before they are needed."""

from typing import Any

import tensorflow as tf

from keras_learned_lr.control.actions import ActionForm, ActionState

# Steps whose learning rates are computed at once; of longer windows, again.
PLANNED = 1024


class RatePlan:
    """The learning rate of each coming step, where an envelope may move it.

    Args:
        form: The action form that says what each is.
        execution: Training steps of one execution, which cannot be interrupted.
    """

    def __init__(self, form: ActionForm, execution: int) -> None:
        self.moves = form.envelope != "constant"
        self._form = form
        self._execution = execution
        ahead = max(PLANNED, 2 * execution)
        self._rates = tf.Variable(tf.zeros([ahead]), trainable=False)
        self._end = 0

    def write(self, state: ActionState, step: tf.Tensor, horizon: tf.Tensor) -> None:
        """Computes the rates of the steps from `step` on.

        Args:
            state: Where the action form stands.
            step: Training steps taken, int64.
            horizon: Training steps of the whole run, int64.
        """
        ahead = self._rates.shape[0]
        # By the step's own number: nothing is counted from a window's start.
        steps = step + (tf.range(ahead, dtype=tf.int64) - step) % ahead
        self._rates.assign(self._form.learning_rate(state, steps, horizon))

    def note(self, step: int) -> None:
        """Tells that it was written at this step."""
        self._end = step + self._rates.shape[0]

    def is_over(self, step: int) -> bool:
        """Whether an execution from this step on may go beyond what was written."""
        return self.moves and step + self._execution > self._end

    def rate(self, step: tf.Tensor) -> Any:
        """Returns the learning rate of a step, float32."""
        return tf.gather(self._rates, step % self._rates.shape[0])
