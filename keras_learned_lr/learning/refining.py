"""Refines a controller: tries other levels, and moves to where runs end lower."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from keras_learned_lr.control.config import Configurable
from keras_learned_lr.control.controller import Exportable
from keras_learned_lr.control.refined import (
    FEATURES,
    QUANTITIES,
    Refined,
    Scales,
    check_refinable,
)
from keras_learned_lr.files import replace_text
from keras_learned_lr.learning.meta_config import check_positive, check_share, read_toml
from keras_learned_lr.learning.slopes import Moments, fit_slopes, moments, size_of
from keras_learned_lr.learning.tasks.split import choose_templates
from keras_learned_lr.learning.trials import TrialRunner, Trials, TrialSettings

BEGUN, WEIGHTS, TRIALS = "config.json", "refinement.json", "trials"
# What features are like is seen on every so many templates, in a pass of its own.
SCALES, EVERY, SCALES_PASS = "scales.json", 9, 999


@dataclasses.dataclass(frozen=True)
class RefineConfig(Configurable):
    """Everything that defines a refinement.

    Attributes:
        trials: What is tried in a batch.
        passes: How often the controller is tried on every training template.
        step: Root mean square of the first pass's change of the correction in decades,
            before its limit, over what the runs saw.
        shrink: That of a pass over that of the one before.
        memory: How much trials count a pass later, in the ones before 1.
        ridge: See `fit_slopes`.
        training: Names of the training templates; all of them where empty.
        seldom: Those of them that take long: tried in every second pass, and shorter.
        seed: Of the tasks and of the moves.
    """

    kind: ClassVar[str] = "refinement"
    trials: TrialSettings = TrialSettings()
    passes: int = 3
    step: float = 0.03
    shrink: float = 0.9
    memory: float = 0.75
    ridge: float = 0.3
    training: tuple[str, ...] = ()
    seldom: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("training", "seldom"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.passes < 1 or self.seed < 0:
            raise ValueError(
                "`passes` must be at least 1 and `seed` at least 0. Received: "
                f"passes={self.passes}, seed={self.seed}"
            )
        check_positive(self, "step", "shrink", "ridge")
        check_share(self, "memory")
        for name in ("training", "seldom"):  # raises if one is unknown
            choose_templates("training", getattr(self, name))


def read_refine_config(path: str | Path) -> RefineConfig:
    """Reads a TOML file of settings; what it does not name keeps its default.

    Args:
        path: The file; `trials` is a table in it.

    Raises:
        ValueError: If there is no such file, it is no TOML, a key is unknown or a
            value is out of its range.
    """
    if not Path(path).is_file():
        raise ValueError(f"No such config file. Received: {str(path)!r}")
    return RefineConfig.from_config(read_toml(Path(path), "RefineConfig"))


class Refining:
    """A refinement in a folder, which goes on with what is there.

    Every pass runs trials on the training templates, around the correction so far, and
    changes it by what they teach; what passes before have taught counts too, but less.
    A batch of trials is a file of its own, made from the seed, the pass, its template
    and the correction alone: after a kill what is missing is run, and more passes may
    follow.

    Args:
        controller: What is refined; frozen.
        folder: Where the trials and the weights lie; made if need be.
        config: The settings; where the folder has some, they must be the same but for
            `passes`.

    Raises:
        ValueError: If the controller cannot be refined, or the folder was begun with
            other settings, for another controller or with other training templates.

    Attributes:
        config: The settings.
        batches: Batches of trials in all passes.
        due: The batches of each pass, by the index of their template.
    """

    def __init__(
        self, controller: Exportable, folder: Path, config: RefineConfig | None = None
    ) -> None:
        self.config = config = config or RefineConfig()
        self._folder = Path(folder)
        self._controller = controller
        check_refinable(controller.observation_spec)
        self._templates = choose_templates("training", config.training)
        seldom = [f"training/{name}" for name in config.seldom]
        self._seldom = [template.name in seldom for template in self._templates]
        self.due = [
            [
                index
                for index in range(len(self._templates))
                if not self._seldom[index] or (number + index) % 2 == 0
            ]
            for number in range(config.passes)
        ]
        self.batches = sum(map(len, self.due))
        self._runner = TrialRunner(controller, config.trials)
        self._learned: dict[str, Any] = {}
        self._begin(controller)

    @property
    def refined(self) -> Refined:
        """The controller with the correction, once it is learned."""
        scales = Scales(*self._learned["scales"])
        return Refined(self._controller, np.array(self._learned["weights"]), scales)

    @property
    def templates(self) -> list[str]:
        """Names of the training templates that it is tried on."""
        return [template.name for template in self._templates]

    def facts(self) -> dict[str, Any]:
        """Returns what a model card tells of it, once it is learned."""
        told = ("passes", "trainee_steps", "minutes")
        settings = {n: getattr(self.config, n) for n in ("step", "shrink", "seed")}
        return {name: self._learned[name] for name in told} | settings

    def run(self, on_batch: Callable[[int], None] | None = None) -> bool:
        """Runs the trials that are missing, and learns from all of them.

        Args:
            on_batch: Called with the number of batches done after each.

        Returns:
            Whether anything was left to learn.
        """
        if self._learned:
            return False
        scales = self._scales()
        self._runner.begin(scales)
        weights = np.zeros(QUANTITIES)
        known: Moments | None = None
        steps, seconds, done = 0, 0.0, 0
        for number, due in enumerate(self.due):
            trials = []
            for index in due:
                trials.append(self.collect(number, index, weights))
                done += 1
                if on_batch is not None:
                    on_batch(done)
            now = moments(trials)
            known = now if known is None else now.plus(known, self.config.memory)
            weights = weights + self._change(number, known, trials)
            steps += int(sum(t.steps for t in trials))
            seconds += float(sum(t.seconds for t in trials))
        self._learned = {
            "passes": self.config.passes,
            "trainee_steps": steps,
            # Of all batches one after another.
            "minutes": round(seconds / 60, 1),
            "scales": [[round(x, 7) for x in each] for each in scales],
            "weights": [round(weight, 7) for weight in weights.tolist()],
        }
        told = json.dumps(self._learned, indent=1) + "\n"
        replace_text(self._folder / WEIGHTS, told)
        return True

    def collect(self, number: int, index: int, weights: np.ndarray) -> Trials:
        """Runs a batch of trials, or reads it where it is there.

        Args:
            number: Of the pass.
            index: Of the template.
            weights: The correction so far.
        """
        path = self._folder / TRIALS / f"{number}-{index:03d}.npz"
        if path.is_file():
            return Trials.load(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        trials = self._runner.run(
            self._templates[index],
            weights,
            [self.config.seed, number, index],
            self._seldom[index],
        )
        trials.save(path)
        return trials

    def _change(self, number: int, known: Moments, trials: list[Trials]) -> np.ndarray:
        slopes = fit_slopes(known, self.config.ridge)
        size = size_of(slopes, trials)
        step = self.config.step * self.config.shrink**number
        # Where nothing that was tried made a difference, nothing is learned.
        return slopes * (step / size if size > 0 else 0.0)

    def _scales(self) -> Scales:
        path = self._folder / SCALES
        if path.is_file():
            return Scales(*json.loads(path.read_text("utf-8")))
        chosen = range(0, len(self._templates), EVERY)
        seeds = [[self.config.seed, SCALES_PASS, index] for index in chosen]
        scales = self._runner.scales([self._templates[i] for i in chosen], seeds)
        replace_text(path, json.dumps(scales) + "\n")
        return scales

    def _begin(self, controller: Exportable) -> None:
        """Holds the folder to what it was begun with, lest trials of two are mixed."""
        weights = [np.asarray(v).tobytes() for v in controller.variables]
        config = self.config.to_config()
        del config["passes"]
        told: dict[str, Any] = {
            "config": config,
            "features": FEATURES,
            "templates": self.templates,
            "action_form": controller.action_form.to_config(),
            "controller": hashlib.sha256(b"".join(weights)).hexdigest()[:16],
        }
        told = json.loads(json.dumps(told))
        begun = self._folder / BEGUN
        if begun.is_file():
            there = json.loads(begun.read_text("utf-8"))
            other = [key for key in told if there.get(key) != told[key]]
            if other:
                raise ValueError(
                    f"The refinement in {str(self._folder)!r} was begun with another "
                    f"{other[0]}. Take another folder. Received: "
                    f"{told[other[0]]}; there: {there.get(other[0])}"
                )
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_text(begun, json.dumps(told, indent=1) + "\n")
        found = self._folder / WEIGHTS
        if found.is_file():
            learned = json.loads(found.read_text("utf-8"))
            if learned["passes"] == self.config.passes:
                self._learned = learned
