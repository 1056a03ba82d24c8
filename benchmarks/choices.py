"""Networks taught on what imitation has collected, and what they choose elsewhere.

    keras-learned-lr train memory --to runs/a    # and others; need not be finished
    python benchmarks/choices.py runs/a runs/b --hold-out 0 --steps 1600
    python benchmarks/choices.py runs/a runs/b --steps 1800 --to runs/taught

Takes the choices in the last checkpoints of runs that still imitate. `--hold-out`
leaves out a fourth of the task families, 0 to 3, and asks what is chosen there; with
`--share` only some of the others are taught, and with `--half` every second batch of
those left out is. Prints one JSON line: mean costs (log loss over the lowest found) by
share of the run, of the families taught and of those left out. `--start`, `--rate` and
`--decay` say how it is taught.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tensorflow as tf
import typer

from keras_learned_lr.learning import ControllerLearner, read_config
from keras_learned_lr.learning.agents import make_adam
from keras_learned_lr.learning.imitation import (
    RUNS_A_STEP,
    Choices,
    build_costs,
    build_step,
    join,
    read_choices,
    rows_of,
)
from keras_learned_lr.learning.run_folder import (
    CHOICES,
    STATE,
    last_checkpoint,
    read_log,
)

SHARES = (0.03, 0.1, 0.2, 0.5, 0.8)
FOLDS = 4
# Of so many runs costs are told.
TOLD = 6400


def collected(folder: Path) -> list[tuple[str, Choices]]:
    """Returns the batches in a run's last checkpoint, each with its template's name."""
    last = last_checkpoint(folder)
    if last is None:
        raise ValueError(f"No checkpoint yet in {folder}")
    done = json.loads((last / STATE).read_text())["round"]
    names = [name for record in read_log(folder, done) for name in record["templates"]]
    batches = read_choices(last / CHOICES)
    return list(zip(names[-len(batches) :], batches, strict=True))


def costs_by_share(learner: ControllerLearner, choices: Choices) -> dict[str, float]:
    """Returns the mean cost of what is chosen, by share of the run."""
    costs_of = tf.function(build_costs(learner), autograph=False)
    count = min(len(choices.task), TOLD)
    chosen = np.random.default_rng(0).permutation(len(choices.task))[:count]
    found = []
    for part in np.array_split(chosen, -(-count // 512)):
        found.append(costs_of(rows_of(choices, part)))
    costs, counts = np.concatenate(found), choices.counts[chosen]
    progress = choices.progress[chosen]
    share = progress[..., 0] / progress[..., 1]
    means = {}
    for low, high in zip(SHARES, SHARES[1:], strict=False):
        weight = counts * ((share >= low) & (share < high))
        mean = (costs * weight).sum() / weight.sum()
        means[f"{low:g}-{high:g}"] = round(float(mean), 4)
    return means


def teach(
    learner: ControllerLearner,
    choices: Choices,
    steps: int,
    rate: float,
    decay: float,
    seed: int,
) -> None:
    """Trains the actor: Adam, its rate down to a tenth and at the end to 0."""
    adam = make_adam(rate, learner.parts.actor.trainable_variables, decay)
    step = build_step(learner, adam)
    rng = np.random.default_rng(seed)
    for index in range(steps):
        now = rate * 0.1 ** (index / steps) * min(1.0, 10 * (1 - index / steps))
        adam.learning_rate.assign(now)
        chosen = rng.integers(0, len(choices.task), RUNS_A_STEP)
        step(rows_of(choices, chosen))


def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    hold_out: Annotated[int, typer.Option(help="0 to 3; -1 for none.")] = -1,
    share: Annotated[float, typer.Option(help="Of the other families.")] = 1.0,
    half: Annotated[bool, typer.Option(help="Teach half of what is left out.")] = False,
    steps: int = 1600,
    rate: float = 2e-3,
    decay: float = 0.0,
    start: Annotated[Path | None, typer.Option(help="A learner's weights.")] = None,
    seed: int = 0,
    to: Annotated[Path | None, typer.Option(help="Where to save the learner.")] = None,
) -> None:
    """Teaches a network and tells what its choices cost."""
    config = read_config("memory").with_seed(seed)
    families = {t.name: t.family for t in config.templates("training")}
    order = np.random.default_rng(5).permutation(sorted(set(families.values())))
    out = set(order[hold_out::FOLDS]) if hold_out >= 0 else set()
    others = [name for name in order if name not in out]
    drawn = np.random.default_rng(seed).permutation(others)
    known = set(drawn[: round(share * len(others))])
    batches = [pair for run in runs for pair in collected(run)]
    left_out = [c for name, c in batches if families[name] in out]
    parts = {
        "taught": [c for name, c in batches if families[name] in known],
        "left_out": left_out[1::2] if half else left_out,
    }
    parts["taught"] += left_out[::2] if half else []
    learner = ControllerLearner(config.learner, RUNS_A_STEP)
    if start is not None:
        learner.begin_with(ControllerLearner.load(start))
    joined = {part: join(found) for part, found in parts.items() if found}
    teach(learner, joined["taught"], steps, rate, decay, seed)
    row: dict[str, Any] = {"steps": steps, "rate": rate, "decay": decay, "seed": seed}
    row |= {"start": start and str(start), "hold_out": sorted(out)}
    row |= {"families": sorted(known), "half": half}
    row |= {part: costs_by_share(learner, found) for part, found in joined.items()}
    print(json.dumps(row))
    if to is not None:
        learner.save(to)


if __name__ == "__main__":
    typer.run(main)
