"""Which envelope to anchor the factor on: constant levels under each of them.

What an envelope loses at its best level, the controller would have to make up for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_learned_lr import json_lines
from keras_learned_lr.control.actions import ENVELOPES, AnchoredScaleFactor
from keras_learned_lr.learning.evaluation import COSINE_SPEC, GRID, run_level
from keras_learned_lr.learning.tasks.sampler import TaskSampler
from keras_learned_lr.learning.tasks.split import choose_templates

TASKS, SEED = 8, 5


def run(
    names: Sequence[str] = (),
    horizons: Sequence[int] = (100, 400),
    results: Path | None = None,
) -> list[dict[str, Any]]:
    """Compares the best of eight levels under each envelope with that under the cosine.

    Args:
        names: Training templates of the split file; all where empty.
        horizons: Training steps.
        results: JSON-lines file; templates and horizons in it are taken from there.

    Returns:
        One row a template and horizon: the geometric mean over its tasks of the best
        level's final loss over that of the best level under the cosine, by envelope.
    """
    rows = json_lines.read(results)
    done = {(row["template"], row["horizon"]) for row in rows}
    samplers = {
        name: TaskSampler(
            COSINE_SPEC, AnchoredScaleFactor(envelope=name, range_decades=6.0)
        )
        for name in ENVELOPES
    }
    for template in choose_templates("training", names):
        for horizon in horizons:
            if (template.name, horizon) in done:
                continue
            best = {
                envelope: _best_losses(sampler, template, horizon)
                for envelope, sampler in samplers.items()
            }
            ratios = {
                envelope: float(np.exp(np.log(losses / best["cosine"]).mean()))
                for envelope, losses in best.items()
            }
            rows.append(
                {"template": template.name, "horizon": horizon, "ratios": ratios}
            )
            json_lines.append(results, rows[-1])
    return rows


def _best_losses(sampler: TaskSampler, template: Any, horizon: int) -> np.ndarray:
    offsets = np.tile(np.asarray(GRID), (TASKS, 1))
    rng = np.random.default_rng([SEED, horizon])
    batch = sampler.draw(template, TASKS, offsets, horizon, rng)
    losses = run_level(batch).reshape(TASKS, len(GRID))
    return np.where(np.isfinite(losses), losses, np.inf).min(1)
