"""Does meta-training work? A short run on several seeds, next to what did not learn."""

import dataclasses
from pathlib import Path
from typing import Any

from keras_learned_lr.benchmark import json_lines
from keras_learned_lr.learning import ControllerLearner, MetaTraining, read_config
from keras_learned_lr.learning.evaluation import (
    examine,
    greedy_act,
    open_loop,
    set_exams,
)

# Tasks of the validation families that no run has looked at while it was training.
EXAM_SEED = 77
# How many times as many of them as are evaluated on the way: eight a template leave an
# error of 0.015 in the mean.
EXAM_TASKS = 4


def run(
    seeds: int,
    config: str = "small",
    folder: Path = Path("runs/meta_training"),
    results: Path | None = None,
) -> dict[str, Any]:
    """Meta-trains on each seed and marks the weights of the last round.

    Marked on validation tasks, drawn anew, and on the last weights, not on the best of
    those evaluated on the way: nothing is chosen on what is scored.

    Args:
        seeds: How many, counting from 0.
        config: The training's config.
        folder: Where the runs live; they are resumed if they are there.
        results: JSON-lines file to which each seed's marks are added; seeds in it are
            taken from there.

    Returns:
        `seeds`, one row a seed: the ratios to the best of the cosine grid of the
        trained controller, of the same without feedback (its observations frozen to
        their average) and untrained.
    """
    rows = json_lines.read(results)
    done = {row["seed"]: row for row in rows if row["config"] == config}
    for seed in range(seeds):
        if seed in done:
            continue
        done[seed] = _one_seed(seed, config, folder / f"{Path(config).stem}-{seed}")
        json_lines.append(results, done[seed])
    return {"config": config, "seeds": [done[seed] for seed in range(seeds)]}


def _one_seed(seed: int, config: str, folder: Path) -> dict[str, Any]:
    chosen = read_config(config).with_seed(seed)
    training = MetaTraining(chosen, folder, resume=True)
    progress = training.run()
    exams = set_exams(
        training.exam_sampler,
        chosen.templates("validation"),
        chosen.evaluation_horizons,
        EXAM_TASKS * chosen.evaluation_tasks,
        EXAM_SEED,
    )
    row: dict[str, Any] = {
        "seed": seed,
        "config": config,
        "rounds": progress.round,
        "trainee_steps": progress.trainee_steps,
        "minutes": sum(progress.seconds.values()) / 60,
        "learning_share": progress.seconds["learn"]
        / (progress.seconds["learn"] + progress.seconds["collect"]),
    }
    untrained = ControllerLearner(training.learner.config, training.learner.batch_size)
    for name, learner, marks in (
        ("trained", training.learner, examine),
        ("open_loop", training.learner, open_loop),
        ("untrained", untrained, examine),
    ):
        controller = learner.greedy()
        found = marks(exams, greedy_act(controller), controller.initial_state)
        row[name] = dataclasses.asdict(found)
    return row
