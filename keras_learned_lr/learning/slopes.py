"""Which way a controller's levels should be moved, from trials of it."""

from collections.abc import Sequence

import numpy as np

from keras_learned_lr.control.refined import quantities
from keras_learned_lr.learning.trials import Trials

# Most that a run may be better or worse than the median of its task's, in logarithms: a
# few that are lost would outweigh all others.
WORST = 0.3
# Least standard deviation of the results of a batch, which are divided by it: every
# template counts the same, but not the noise of one on which nothing matters.
LEAST_DEVIATION = 0.003
# Least size of a move times a quantity, in that of the median quantity.
LEAST_SCALE = 0.05
# As good as nothing, where the ridge must not touch a coefficient.
_FREE = 1e-3


def fit_slopes(trials: Sequence[Trials], progress: int, ridge: float) -> np.ndarray:
    """Returns how much better runs end for each quantity that moves are weighted with.

    Ridge regression of a run's result on how it was moved times what its task's runs
    saw in that phase (`quantities`), with a parabola for each phase beside it. Only
    trainees of the same task are compared. It is a natural policy gradient, the mean
    of a group its baseline, in closed form: coefficients of a regression on compatible
    features (Kakade 2002, "A natural policy gradient", section 3).

    Args:
        trials: All under the same controller.
        progress: Which feature is the progress.
        ridge: Penalty, in units of the quantities' own variance.

    Returns:
        float `[quantities]`: how many standard deviations the logarithm of the final
        loss falls for each decade and unit of the quantity; see `weigh`.

    Raises:
        ValueError: If there are none.
    """
    if not trials:
        raise ValueError("There are no trials to fit. Received: none")
    rows = [_design(found, progress) for found in trials]
    free = trials[0].moved.shape[-1]
    total = sum(len(result) for _, result in rows)
    products = sum(x.T @ x for x, _ in rows) / total
    targets = sum(x.T @ y for x, y in rows) / total
    scale = np.sqrt(np.diag(products))
    # What is the same in all runs but a few would get whatever weight those ask for.
    scale = np.maximum(scale, LEAST_SCALE * np.median(scale[free:]) + 1e-12)
    penalty = np.full(len(scale), ridge)
    penalty[:free] = _FREE
    system = products / np.outer(scale, scale) + np.diag(penalty)
    return -(np.linalg.solve(system, targets / scale) / scale)[free:]


def weigh(slopes: np.ndarray, trials: Sequence[Trials], progress: int) -> np.ndarray:
    """Returns the correction at each decision that trials have seen.

    Args:
        slopes: What `fit_slopes` returned, or a multiple of it.
        trials: The trials.
        progress: Which feature is the progress.

    Returns:
        float `[decisions of all of them]`.
    """
    found = [quantities(t.seen, progress) @ slopes for t in trials]
    return np.concatenate([corrections.ravel() for corrections in found])


def _design(trials: Trials, progress: int) -> tuple[np.ndarray, np.ndarray]:
    tasks, group, phases = trials.moved.shape
    seen = quantities(trials.seen.astype("float64"), progress)
    inside = trials.phase[:, np.newaxis] == np.arange(phases)
    # What was seen in a phase, summed over its decisions: [tasks, phases, quantities].
    summed = np.einsum("dtq,dp->tpq", seen, inside)
    moved = trials.moved.astype("float64")
    moved -= moved.mean(1, keepdims=True)
    decisions = inside.sum(0)
    parabola = moved**2 * decisions
    parabola -= parabola.mean(1, keepdims=True)
    weighted = np.einsum("tgp,tpq->tgq", moved, summed)
    design = np.concatenate([parabola, weighted], -1)
    return design.reshape(tasks * group, -1), _result(trials.loss).reshape(-1)


def _result(loss: np.ndarray) -> np.ndarray:
    lost = np.log(np.finfo("float32").max)
    with np.errstate(invalid="ignore", divide="ignore"):
        result = np.where(loss > 0, np.log(loss.astype("float64")), -lost)
    result = np.where(np.isfinite(loss), result, lost)
    result = np.clip(result - np.median(result, 1, keepdims=True), -WORST, WORST)
    result -= result.mean(1, keepdims=True)
    return result / max(result.std(), LEAST_DEVIATION)
