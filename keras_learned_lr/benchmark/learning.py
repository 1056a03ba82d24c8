"""Does a controller learn inside `fit`? The demo's training against a cut control."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from keras_learned_lr import json_lines
from keras_learned_lr.demo import EPISODES, LEARNER, train_controller

CONFIGS = {
    "learner": LEARNER,
    # An Adam step of this size changes no float32 weight: the gradients are cut.
    "cut": dataclasses.replace(LEARNER, learning_rate=1e-30, final_learning_rate=1e-30),
}


def run(
    seeds: int = 5, episodes: int = EPISODES, results: str | Path | None = None
) -> dict[str, Any]:
    """Trains a controller and its control on each seed and compares their rewards.

    Args:
        seeds: How many, counting from 0.
        episodes: Fits of each training.
        results: A JSON-lines file that keeps every training; those in it are not run
            again.

    Returns:
        `seeds`, a list with one dict a seed (mean rewards of the first and last fifth,
        of the control's last fifth, and the two one-sided p values of a Mann-Whitney
        test), and `learned`, the number of seeds on which both are below 0.05.
    """
    from scipy.stats import mannwhitneyu

    fifth = max(1, episodes // 5)
    rows = []
    for seed in range(seeds):
        rewards = {kind: _rewards(kind, seed, episodes, results) for kind in CONFIGS}
        first, last = rewards["learner"][:fifth], rewards["learner"][-fifth:]
        control = rewards["cut"][-fifth:]
        rows.append(
            {
                "seed": seed,
                "first_fifth": float(np.mean(first)),
                "last_fifth": float(np.mean(last)),
                "control_last_fifth": float(np.mean(control)),
                "p_first": float(mannwhitneyu(last, first, alternative="greater")[1]),
                "p_control": float(
                    mannwhitneyu(last, control, alternative="greater")[1]
                ),
            }
        )
    learned = sum(row["p_first"] < 0.05 and row["p_control"] < 0.05 for row in rows)
    return {"episodes": episodes, "seeds": rows, "learned": learned}


def _rewards(
    kind: str, seed: int, episodes: int, results: str | Path | None
) -> list[float]:
    made = {"kind": kind, "seed": seed, "episodes": episodes}
    for kept in json_lines.read(results):
        if made.items() <= kept.items():
            return kept["rewards"]
    _, done = train_controller(episodes, seed, config=CONFIGS[kind])
    rewards = [episode.reward for episode in done]
    json_lines.append(results, {**made, "rewards": rewards})
    return rewards
