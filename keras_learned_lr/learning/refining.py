"""Refines a controller: tries other levels, and moves it to where runs end lower."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from keras_learned_lr.control.config import Configurable
from keras_learned_lr.control.controller import Exportable
from keras_learned_lr.control.refined import Refined, quantities_of, refinable
from keras_learned_lr.files import replace_text
from keras_learned_lr.learning.meta_config import check_positive, read_toml
from keras_learned_lr.learning.slopes import fit_slopes, weigh
from keras_learned_lr.learning.tasks.split import choose_templates
from keras_learned_lr.learning.trials import TrialRunner, Trials, TrialSettings

BEGUN, WEIGHTS, TRIALS = "config.json", "refinement.json", "trials"


@dataclasses.dataclass(frozen=True)
class RefineConfig(Configurable):
    """Everything that defines a refinement.

    Attributes:
        trials: What is tried in a batch.
        passes: How often the controller is tried on every training template.
        step: Root mean square of the correction in decades, before `limit`, over the
            means of what the runs of a task saw at the decisions it was learned from.
        ridge: See `fit_slopes`.
        limit: Most decades that it adds to a decision, or takes away.
        training: Names of the training templates; all of them where empty.
        seed: Of the tasks and of the moves.
    """

    kind: ClassVar[str] = "refinement"
    trials: TrialSettings = TrialSettings()
    passes: int = 2
    step: float = 0.05
    ridge: float = 0.3
    limit: float = 0.15
    training: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "training", tuple(self.training))
        if self.passes < 1 or self.seed < 0:
            raise ValueError(
                "`passes` must be at least 1 and `seed` at least 0. Received: "
                f"passes={self.passes}, seed={self.seed}"
            )
        check_positive(self, "step", "ridge", "limit")
        if not self.step < self.limit:
            raise ValueError(
                f"`step` must be below `limit`. Received: {self.step} and {self.limit}"
            )
        choose_templates("training", self.training)  # raises if a name is unknown


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

    Every pass runs trials on each training template; all of them together teach the
    weights of the correction (see `Refined`). A batch of trials is a file of its own,
    made from the seed, the pass and its place alone: after a kill what is missing is
    run, and more passes may follow.

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
        refined: The controller with the correction, once it is learned.
        batches: Batches of trials in all passes.
    """

    def __init__(
        self, controller: Exportable, folder: Path, config: RefineConfig | None = None
    ) -> None:
        self.config = config = config or RefineConfig()
        self._folder = Path(folder)
        self._names = refinable(controller.observation_spec.names)
        self._progress = self._names.index("progress")
        self._templates = choose_templates("training", config.training)
        self.batches = config.passes * len(self._templates)
        nothing = np.zeros(quantities_of(self._names))
        self.refined = Refined(controller, nothing, config.limit)
        self._still = Refined(controller, nothing, config.limit)
        self._runner = TrialRunner(self._still, config.trials)
        self._learned: dict[str, Any] = {}
        self._begin(controller)

    def facts(self) -> dict[str, Any]:
        """Returns what a model card tells of it, once it is learned."""
        told = ("passes", "trainee_steps", "minutes")
        settings = {n: getattr(self.config, n) for n in ("step", "limit", "seed")}
        return {name: self._learned[name] for name in told} | settings

    @property
    def templates(self) -> list[str]:
        """Names of the training templates that it is tried on."""
        return [template.name for template in self._templates]

    def run(self, on_batch: Callable[[int], None] | None = None) -> None:
        """Runs the trials that are missing, and learns from all of them.

        Args:
            on_batch: Called with the number of batches done after each.
        """
        if self._learned:
            return
        trials = []
        for index in range(self.batches):
            trials.append(self.collect(index))
            if on_batch is not None:
                on_batch(index + 1)
        self._learn(trials)

    def collect(self, index: int) -> Trials:
        """Runs a batch of trials, or reads it where it is there.

        Args:
            index: Which, below `batches`; one pass comes after another.
        """
        number, template = divmod(index, len(self._templates))
        path = self._folder / TRIALS / f"{number}-{template:03d}.npz"
        if path.is_file():
            return Trials.load(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([self.config.seed, number, template])
        trials = self._runner.run(self._templates[template], rng)
        trials.save(path)
        return trials

    def _learn(self, trials: list[Trials]) -> None:
        slopes = fit_slopes(trials, self._progress, self.config.ridge)
        corrections = weigh(slopes, trials, self._progress)
        size = np.sqrt(np.mean(corrections**2))
        # Where nothing that was tried made a difference, nothing is learned.
        weights = slopes * (self.config.step / size if size > 0 else 0.0)
        self._learned = {
            "passes": self.config.passes,
            "trainee_steps": int(sum(t.steps for t in trials)),
            # Of all batches one after another.
            "minutes": round(float(sum(t.seconds for t in trials)) / 60, 1),
            "weights": [round(weight, 7) for weight in weights.tolist()],
        }
        told = json.dumps(self._learned, indent=1) + "\n"
        replace_text(self._folder / WEIGHTS, told)
        self.refined.assign(self._learned["weights"])

    def _begin(self, controller: Exportable) -> None:
        """Holds the folder to what it was begun with, lest trials of two are mixed."""
        weights = [np.asarray(v).tobytes() for v in controller.variables]
        config = self.config.to_config()
        del config["passes"]
        told: dict[str, Any] = {
            "config": config,
            "features": self._names,
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
                self.refined.assign(learned["weights"])
