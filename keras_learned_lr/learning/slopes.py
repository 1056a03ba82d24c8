"""Which way a controller's levels should be moved, from trials of it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from keras_learned_lr.control.refined import FEATURE_WEIGHTS, QUANTITIES
from keras_learned_lr.learning.trials import Trials

# Most that a run may be better or worse than the median of its task's, in logarithms: a
# few that are lost would outweigh all others.
WORST = 0.3
# Least standard deviation of the results of a batch, which are divided by it: every
# template counts the same, but not the noise of one on which nothing matters.
LEAST_DEVIATION = 0.004
# Least size of a move times a quantity, in that of the median quantity.
LEAST_SCALE = 0.05
# As good as nothing, where the ridge must not touch a coefficient.
_FREE = 1e-3


class Moments(NamedTuple):
    """What a regression needs to know of trials; those of several add up.

    Attributes:
        products: Sums of products of the columns, `[columns, columns]`.
        targets: Sums of the columns times the results, `[columns]`.
        runs: How many runs.
    """

    products: np.ndarray
    targets: np.ndarray
    runs: float

    def plus(self, other: "Moments", share: float) -> "Moments":
        """Returns these and a share of others together."""
        return Moments(
            self.products + share * other.products,
            self.targets + share * other.targets,
            self.runs + share * other.runs,
        )


def moments(trials: Sequence[Trials]) -> Moments:
    """Returns the moments of a run's result and of how it was moved.

    The columns are a run's moves times what its task's runs saw (`Refined.quantities`),
    summed over its decisions, and a parabola for each knot. Only trainees of the same
    task are compared.

    Raises:
        ValueError: If there are no trials.
    """
    if not trials:
        raise ValueError("There are no trials to fit. Received: none")
    rows = [_design(found) for found in trials]
    return Moments(
        sum(x.T @ x for x, _ in rows),
        sum(x.T @ y for x, y in rows),
        sum(len(y) for _, y in rows),
    )


def fit_slopes(known: Moments, ridge: float) -> np.ndarray:
    """Returns how much better runs end for each weight.

    Ridge regression of a run's result on how it was moved. It is a natural policy
    gradient, the mean of a group its baseline, in closed form: coefficients of a
    regression on compatible features (Kakade 2002, "A natural policy gradient",
    section 3).

    Args:
        known: All under the same controller, or nearly so.
        ridge: Penalty, in units of the quantities' own variance.

    Returns:
        float `[QUANTITIES]`: how many standard deviations the logarithm of the final
        loss falls for each decade.
    """
    products, targets = known.products / known.runs, known.targets / known.runs
    scale = np.sqrt(np.diag(products))
    # What is the same in all runs but a few would get whatever weight those ask for.
    scale = np.maximum(scale, LEAST_SCALE * np.median(scale[:QUANTITIES]) + 1e-12)
    penalty = np.full(len(scale), _FREE)
    penalty[:QUANTITIES] = ridge
    system = products / np.outer(scale, scale) + np.diag(penalty)
    return -(np.linalg.solve(system, targets / scale) / scale)[:QUANTITIES]


def size_of(weights: np.ndarray, trials: Sequence[Trials]) -> float:
    """Returns the root mean square of a correction, before its limit, in decades.

    Args:
        weights: Of the correction, `[QUANTITIES]`.
        trials: The mean of what the runs of a task saw; each batch counts the same.
    """
    squares = [np.mean((t.seen.astype("float64") @ weights) ** 2) for t in trials]
    return float(np.sqrt(np.mean(squares)))


def _design(trials: Trials) -> tuple[np.ndarray, np.ndarray]:
    seen, moved = trials.seen.astype("float64"), trials.moved.astype("float64")
    constant = seen[..., FEATURE_WEIGHTS:]
    by_decision = np.einsum("tgk,dtk->dtg", moved, constant)
    weighted = np.einsum("dtg,dtq->tgq", by_decision, seen)
    parabola = moved**2 * constant.sum(0)[:, np.newaxis]
    design = np.concatenate([weighted, parabola], -1)
    design -= design.mean(1, keepdims=True)
    columns = design.shape[-1]
    return design.reshape(-1, columns), _result(trials.loss).reshape(-1)


def _result(loss: np.ndarray) -> np.ndarray:
    lost = np.log(np.finfo("float32").max)
    with np.errstate(invalid="ignore", divide="ignore"):
        result = np.where(loss > 0, np.log(loss.astype("float64")), -lost)
    result = np.where(np.isfinite(loss), result, lost)
    result = np.clip(result - np.median(result, 1, keepdims=True), -WORST, WORST)
    result -= result.mean(1, keepdims=True)
    return result / max(result.std(), LEAST_DEVIATION)
