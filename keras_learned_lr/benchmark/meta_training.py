"""Does meta-training work? A short run on several seeds, next to what did not learn."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from keras_learned_lr import json_lines
from keras_learned_lr.learning import (
    ControllerLearner,
    MetaTrainConfig,
    MetaTraining,
    read_config,
)
from keras_learned_lr.learning.evaluation import (
    examine,
    greedy_act,
    open_loop,
    set_exams,
)
from keras_learned_lr.learning.run_folder import CONFIG

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
    those evaluated on the way. The families of these tasks are those that a config's
    settings, as its lift, were chosen on.

    Args:
        seeds: How many, counting from 0.
        config: The training's config.
        folder: Where the runs live; they are resumed if they are there.
        results: JSON-lines file to which each seed's marks are added; seeds in it with
            the same settings are taken from there.

    Returns:
        `seeds`, one row a seed: the ratios to the best of the cosine grid of the
        trained controller, of the same without feedback (its observations frozen to
        their average) and untrained.
    """
    rows = json_lines.read(results)
    settings = checksum(read_config(config))
    done = {row["seed"]: row for row in rows if row["settings"] == settings}
    for seed in range(seeds):
        if seed in done:
            continue
        done[seed] = _one_seed(seed, config, folder / f"{Path(config).stem}-{seed}")
        json_lines.append(results, done[seed])
    return {"config": config, "seeds": [done[seed] for seed in range(seeds)]}


def _one_seed(seed: int, config: str, folder: Path) -> dict[str, Any]:
    given = read_config(config)
    chosen = given.with_seed(seed)
    training = MetaTraining(chosen, folder, resume=(folder / CONFIG).exists())
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
        "settings": checksum(given),
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


def checksum(config: MetaTrainConfig) -> str:
    """Returns the first 12 hex digits of the SHA-256 of what a config sets."""
    settings, defaults = config.to_config(), MetaTrainConfig().to_config()
    set_here = {k: v for k, v in settings.items() if v != defaults[k]}
    text = json.dumps(set_here, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
