"""Back to the weights of before, where a window has ruined them."""

import keras
import tensorflow as tf

from keras_learned_lr.control.actions import COME_DOWN, HOLD, progress_of
from keras_learned_lr.observation.layers import bytes_of, is_built, room_for
from keras_learned_lr.observation.memory import Memory
from keras_learned_lr.observation.statistics import Statistics

# What a run had learned is undone when this share of all that its loss had fallen is
# lost again, and this share of its first loss.
UNDONE, AT_LEAST = 0.25, 0.1
# A model has died in a window after which its outputs vary between examples by no more
# than rounding, this share of the variance before.
ALIKE = 1e-8
# Windows in a row whose last training loss was not finite: one may be of a bad batch.
PATIENCE = 3
# As often in a row weights go back; after that they are not what is at fault.
ATTEMPTS = 3
# In this share of a run they go back to its beginning. A momentum that an excessive
# learning rate has filled ruins weights later on, whatever the rate is then, and a loss
# may fall before; a beginning is soon made up for.
YOUTH = 0.02


def has_collapsed(
    statistics: Statistics, memory: Memory, lags: bool
) -> tuple[tf.Tensor, Memory]:
    """Returns whether a window has ruined the weights, so that they are put back.

    They are where a loss or a weight is not finite any more, or most of what was
    learned is undone; losses are compared by their differences only, so that one below
    0 is like any other. They are too where a model has died, as one does whose ReLUs
    are all at 0: it says the same of every example, for good, and where nothing had
    been learned yet no loss need have risen. If any of it happens again and again,
    whatever the learning rate, it is not the rate (a momentum goes on, say, or the loss
    itself is another by now): then they are left to recover. But while the loss is
    above that of the run's beginning, and not with the weights of before, the level
    does not rise, and comes down when the loss rises (`Memory.retreats`).

    Args:
        statistics: Of the window, scalars or `[batch]`.
        memory: What was remembered when it began.
        lags: Whether validation losses lag behind the weights, as those of a batch
            normalisation do, which takes moving averages for them. While these catch
            up the loss rises and nothing is lost: the training loss has to have risen
            too, but in a young run, whose averages a bad step spoils for long, and
            where the validation loss is not finite. Nor is it dead when what it says
            with these averages is the same of every example.

    Returns:
        That, and the memory with its setbacks counted.
    """
    s, m = statistics, memory
    young = is_young(s.step, s.horizon)
    undone = _is_undone(
        s.validation_loss,
        m.validation_seen,
        m.first_validation_loss,
        m.best_validation_loss,
    )
    broken = ~tf.math.is_finite(s.validation_loss)
    # A NaN in a weight may be hidden by a ReLU, and every loss be finite. A norm that
    # overflows is no NaN: what is normalised trains on with it.
    hidden = tf.math.is_nan(s.weight_norm) & (m.validation_seen > 0.5)
    broken, undone = broken | hidden, undone | hidden
    if lags:
        risen = _is_undone(
            s.training_loss,
            m.training_seen,
            m.first_training_loss,
            m.best_training_loss,
        )
        undone &= young | broken | risen
    else:
        undone |= s.output_variance_after < ALIKE * s.output_variance_before
    again = broken | (m.setbacks < ATTEMPTS)
    worse = _is_above(s.validation_loss, m.first_validation_loss)
    if lags:
        # What a loss that lags says of the weights kept is not sure enough.
        worse &= _is_above(s.training_loss, m.first_training_loss)
    else:
        worse &= _keeps_better(s.validation_loss, m)
    # What is broken goes back as often as it takes, and says nothing of the others.
    setbacks = tf.where(undone, m.setbacks + tf.where(broken, 0.0, 1.0), 0.0)
    keeps = ~broken & (tf.equal(setbacks, 0.0) & ~young | (m.validation_seen < 0.5))
    kept = tf.where(keeps, s.validation_loss, m.kept_validation_loss)
    rises = s.validation_loss > m.previous_validation_loss
    m = m._replace(
        setbacks=setbacks,
        kept_validation_loss=kept,
        retreats=tf.where(undone & worse, tf.where(rises, COME_DOWN, HOLD), 0.0),
    )
    return undone & again, m


def has_broken(statistics: Statistics, memory: Memory) -> tuple[tf.Tensor, Memory]:
    """Returns the same where there is no validation loss to tell.

    The mean of a few training losses says too little for more than this: they are not
    finite, and go on so.

    Args:
        statistics: Of the window, scalars or `[batch]`.
        memory: What was remembered when it began.

    Returns:
        That, and the memory with the windows in a row counted as setbacks.
    """
    broken = ~tf.math.is_finite(statistics.training_loss_latest)
    windows = tf.where(broken, memory.setbacks + 1.0, 0.0)
    back = windows >= PATIENCE
    return back, memory._replace(setbacks=tf.where(back, 0.0, windows))


def retreat_of(collapsed: tf.Tensor, memory: Memory) -> tf.Tensor:
    """Returns what bounds the next level, as `ActionForm.step` takes it.

    Args:
        collapsed: bool, whether weights go back; then the level comes down with them.
        memory: What was remembered at the decision.
    """
    return tf.where(collapsed, COME_DOWN, memory.retreats)


def _is_undone(
    loss: tf.Tensor, seen: tf.Tensor, first: tf.Tensor, best: tf.Tensor
) -> tf.Tensor:
    allowed = _allowed(first, best)
    # Of a loss that began at 0 and has not fallen nothing is known.
    lost = ~tf.math.is_finite(loss) | (loss - best > allowed) & (allowed > 0.0)
    return (seen > 0.5) & lost


def _is_above(loss: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
    """Whether a run is worse than at its beginning.

    Below that much of what it has learned since may still be there, and it is left to
    recover, as where a momentum goes on.
    """
    return loss - first > AT_LEAST * tf.abs(first)


def _keeps_better(loss: tf.Tensor, m: Memory) -> tf.Tensor:
    allowed = _allowed(m.first_validation_loss, m.best_validation_loss)
    return loss - m.kept_validation_loss > allowed


def _allowed(first: tf.Tensor, best: tf.Tensor) -> tf.Tensor:
    return tf.maximum(UNDONE * (first - best), AT_LEAST * tf.abs(first))


def is_young(step: tf.Tensor, horizon: tf.Tensor) -> tf.Tensor:
    """Returns whether a run goes back to its beginning; see `YOUTH`."""
    return progress_of(step, horizon) < YOUTH


class Rollback:
    """Keeps a model's weights and its optimizer's variables, and puts them back.

    The copy is that of the last decision at which losses, weights and the optimizer's
    variables were all finite and nothing that had been learned was undone; in a young
    run that of its beginning (see `YOUTH`). It takes the memory of the weights and of
    the optimizer's variables once more, on their devices.

    Args:
        model: The compiled and built model.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._variables: list[keras.Variable] = []
        self._copies: list[tf.Variable] = []
        with tf.device("CPU:0"):
            self._kept_step = tf.Variable(-1, dtype=tf.int64, trainable=False)
        # The copies are restored when they are put here.
        self._checkpoint = tf.train.Checkpoint(kept_step=self._kept_step)

    @property
    def checkpoint(self) -> tf.train.Checkpoint:
        """All that a run which is interrupted goes on from."""
        return self._checkpoint

    def start(self) -> None:
        """Begins a run: nothing is kept."""
        self._kept_step.assign(-1)

    @property
    def nbytes(self) -> int:
        """Memory of the copies, in bytes."""
        return bytes_of(self._copies)

    @property
    def kept_step(self) -> tf.Tensor:
        """The step whose weights are kept, int64, -1 before there are any."""
        return self._kept_step.read_value()

    def keep(self, step: tf.Tensor, horizon: tf.Tensor, setbacks: tf.Tensor) -> None:
        """Keeps the weights of a run that has not collapsed; works inside a graph.

        Call `make_copies` before it.

        Args:
            step: Training steps taken, int64.
            horizon: Training steps of the whole run, int64.
            setbacks: Of `Memory`, after this decision. Weights that are left to recover
                are worth less than those of before.
        """
        values = [tf.convert_to_tensor(v.value) for v in self._variables]
        floating = [value for value in values if value.dtype.is_floating]
        # The last update of a window of finite losses may have been the fatal one.
        finite = tf.reduce_all(
            [tf.reduce_all(tf.math.is_finite(value)) for value in floating]
        )
        first = self._kept_step < 0
        sound = tf.equal(setbacks, 0.0) & ~is_young(step, horizon)

        def copy() -> tf.Tensor:
            for kept, value in zip(self._copies, values, strict=True):
                kept.assign(value)
            return self._kept_step.assign(step)

        tf.cond(finite & (first | sound), copy, lambda: self.kept_step)

    def put_back(self) -> None:
        """Puts back the weights and the optimizer's variables that were kept."""
        for variable, copy in zip(self._variables, self._copies, strict=True):
            variable.assign(copy)

    def make_copies(self, begun: bool = False) -> bool:
        """Makes room for the copies; says whether the model is built for it.

        Args:
            begun: Whether it has made a training step, so that a layer without weights
                is one that it does not call.
        """
        model = self._model
        if self._copies:
            return True
        if not (begun or is_built(model)):
            return False
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        # Neither metrics nor the seeds of dropout: these may go on.
        self._variables = [*model.weights, *model.optimizer.variables]
        self._copies = room_for(self._variables)
        self._checkpoint.copies = self._copies
        return True
