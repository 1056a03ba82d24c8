"""The statistics behind the scores; nothing here knows tasks or methods."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

# A ratio is kept within 1 / CAP and CAP; a diverged run counts as CAP.
CAP = 10.0
# Ratios this close to 1 are ties.
TIE = 0.005
CONFIDENCE = 0.95
RESAMPLES = 2000
# The largest factor over the fastest that a performance profile looks at, as AlgoPerf.
LARGEST_FACTOR = 4.0


def ratio(loss: float | None, reference: float | None) -> float:
    """Returns `loss / reference` within 1 / CAP and CAP.

    Args:
        loss: A final loss, not negative; None for a run that diverged.
        reference: What it is measured by, likewise. Two diverged runs are equal.
    """
    if loss is None or reference is None:
        if loss == reference:
            return 1.0
        return CAP if loss is None else 1.0 / CAP
    return float(np.clip(loss / max(reference, 1e-12), 1.0 / CAP, CAP))


def interquartile_mean(values: Any, axis: int | None = None) -> Any:
    """Returns the mean of the middle half (Agarwal et al. 2021)."""
    return stats.trim_mean(values, 0.25, axis=axis)


def stratified_interval(strata: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """Returns a percentile-bootstrap interval of the interquartile mean.

    Within each stratum (a task) seeds are drawn with replacement; all runs of a seed,
    from whichever initial learning rate, go together, as they share data order,
    initial weights and reference. Drawing from few makes means vary too little, by
    `(n - 1) / n` in variance, so the interval is widened by that (Rao & Wu 1988,
    "Resampling inference with complex survey data").

    Args:
        strata: Arrays `[seeds, starts]`, one a task.

    Returns:
        The two ends at 95 % confidence, or None with fewer than two seeds.
    """
    fewest = min(len(table) for table in strata)
    if fewest < 2:
        return None

    def statistic(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        chosen = [t[seeds.astype(int)] for t, seeds in zip(strata, drawn, strict=True)]
        flat = [c.reshape(*c.shape[:-2], -1) for c in chosen]
        return interquartile_mean(np.concatenate(flat, axis=-1), axis=-1)

    found = stats.bootstrap(
        [np.arange(len(table)) for table in strata],
        statistic,
        n_resamples=RESAMPLES,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    every = np.concatenate([table.ravel() for table in strata])
    middle, wider = interquartile_mean(every), (fewest / (fewest - 1)) ** 0.5
    low, high = (middle + wider * (end - middle) for end in found)
    return float(low), float(high)


def wins_ties_losses(ratios: np.ndarray) -> tuple[int, int, int]:
    """Returns how many ratios are below 1, about 1 and above 1."""
    wins, losses = np.sum(ratios < 1.0 - TIE), np.sum(ratios > 1.0 + TIE)
    return int(wins), int(ratios.size - wins - losses), int(losses)


def steps_to_target(
    curve: Sequence[float | None], steps: int, target: float | None
) -> float:
    """Returns after how many steps a loss first was at the target; inf if never.

    Args:
        curve: The loss at equal distances, the last at the end; None where it was not
            finite. A run that was broken off has fewer.
        steps: Training steps between two of them.
        target: The loss to reach; None where there is none.
    """
    if target is None:
        return float("inf")
    for index, loss in enumerate(curve):
        if loss is not None and loss <= target:
            return float(steps * (index + 1))
    return float("inf")


def performance_profiles(
    times: Mapping[str, np.ndarray],
) -> dict[str, dict[str, Any]]:
    """Returns how often each method is within a factor of the fastest.

    The performance profile of Dolan & Moré 2002 and AlgoPerf's score on it: the area
    below the profile between a factor of 1 and of `LARGEST_FACTOR`, over its width.

    Args:
        times: For each method, one time a task, inf where it missed the target.

    Returns:
        For each method `factors`, one a task (None where it missed the target), and
        `score` in [0, 1].
    """
    fastest = np.min(list(times.values()), axis=0)
    profiles = {}
    for method, taken in times.items():
        reached = np.isfinite(taken)
        factors = np.full(len(taken), np.inf)
        factors[reached] = taken[reached] / fastest[reached]
        left = np.clip(LARGEST_FACTOR - factors, 0.0, None)
        profiles[method] = {
            "factors": [float(f) if np.isfinite(f) else None for f in factors],
            "score": float(np.mean(left) / (LARGEST_FACTOR - 1.0)),
        }
    return profiles
