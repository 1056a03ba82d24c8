"""Settings of a meta-training run, and the TOML files that hold them."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, ClassVar

from keras_learned_lr.control.actions import ActionForm, changed
from keras_learned_lr.control.config import Configurable
from keras_learned_lr.learning.config import LearnerConfig
from keras_learned_lr.learning.environment import BASELINES
from keras_learned_lr.learning.tasks import TaskTemplate
from keras_learned_lr.learning.tasks.split import choose_templates
from keras_learned_lr.learning.tasks.task_family import LEAST_WRONG

SHIPPED = Path(__file__).parent / "configs"
# Where a table of the file says no name, it is the class that belongs there.
_NAMES = {"learner": "LearnerConfig", "width": "Width", "trials": "TrialSettings"}
# A learner's settings that follow from the run's.
_FOLLOWING = ("capacity", "episodes_per_update", "train_every")


@dataclasses.dataclass(frozen=True)
class MetaTrainConfig(Configurable):
    """Everything that defines a meta-training run.

    Attributes:
        learner: What learns.
        rounds: How many times to collect and learn.
        imitation_rounds: The first rounds, in which the controller imitates what a
            search found instead of learning from rewards; see `Imitation`.
        imitation_learning_rate: Of an Adam of their own at the first; it falls
            to a tenth.
        imitation_steps: Gradient steps in each of those.
        imitation_batches: Batches of trainees that they learn from, the latest ones.
        imitation_deviation: Standard deviation of the actions in the first of those
            rounds; it falls to 0.
        imitation_resolution: See `search`; what `LogImprovement` has is its own.
        imitation_decay: Of weights in those rounds, see `make_adam`.
        averaged: Rounds after which the weights are noted; at the end of the run they
            become the mean of those.
        lift: Decades that every decision of the finished controller adds, and none of
            the one that learns; see `ScaleFactor`. Evaluations mark the finished one.
        envelope: Of the finished controller, a key of `ENVELOPES`; where empty, that
            of the one that learns.
        average: Of the finished controller, see `ActionForm`. Meta-training and its
            marks average nothing.
        training: Names of the split's training templates, "mixtures_adam"; all of them
            where empty.
        validation: The same for validation.
        templates_per_round: Templates drawn for each round, one batch of trainees of
            each.
        tasks: Tasks in a batch.
        group: Trainees of each task, from different initial learning rates. 8, as the
            evaluation has so many.
        shown: Validation examples that the controller sees, at most.
        fewest_rows: See `TaskSampler`.
        most_wrong: See `TaskSampler`.
        decades: Initial learning rates lie within ± these decades of the template's.
        shortest_horizon: Training steps of the shortest runs.
        longest_horizon: Of the longest; horizons are log-uniform between the two.
        baseline: See `TraineesEnvironment`.
        evaluate_every: Rounds between evaluations on the validation tasks.
        evaluation_horizons: Training steps of those.
        evaluation_tasks: Tasks of each validation template and horizon. The same as
            `tasks` spares a second graph.
        checkpoint_every: Rounds between checkpoints.
        seed: Of the tasks. The learner has its own.
    """

    kind: ClassVar[str] = "meta-training"
    learner: LearnerConfig = LearnerConfig()
    rounds: int = 400
    imitation_rounds: int = 0
    imitation_learning_rate: float = 1e-3
    imitation_steps: int = 120
    imitation_batches: int = 120
    imitation_deviation: float = 0.25
    imitation_resolution: float = 0.01
    imitation_decay: float = 0.0
    averaged: tuple[int, ...] = ()
    lift: float = 0.0
    envelope: str = ""
    average: float = 0.0
    training: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    templates_per_round: int = 3
    tasks: int = 8
    group: int = 8
    shown: int = 256
    fewest_rows: int = 256
    most_wrong: float = 0.25
    decades: float = 3.0
    shortest_horizon: int = 60
    longest_horizon: int = 1000
    baseline: str = "group"
    evaluate_every: int = 50
    evaluation_horizons: tuple[int, ...] = (100, 400)
    evaluation_tasks: int = 8
    checkpoint_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("averaged", "training", "validation", "evaluation_horizons"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in (
            "rounds",
            "imitation_steps",
            "imitation_batches",
            "templates_per_round",
            "tasks",
            "group",
            "shown",
            "fewest_rows",
            "shortest_horizon",
            "evaluate_every",
            "evaluation_tasks",
            "checkpoint_every",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"`{name}` must be an int of at least 1. Received: {value!r}"
                )
        for name in ("imitation_rounds", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(
                    f"`{name}` must be an int of at least 0. Received: {value!r}"
                )
        lengths = self.evaluation_horizons
        if not lengths or min(lengths) < 1:
            raise ValueError(
                "`evaluation_horizons` must be one number of training steps or more. "
                f"Received: {list(lengths)}"
            )
        if not all(0 < number <= self.rounds for number in self.averaged):
            raise ValueError(
                f"`averaged` must be rounds from 1 to {self.rounds}. Received: "
                f"{self.averaged}"
            )
        check_positive(
            self,
            "imitation_learning_rate",
            "imitation_deviation",
            "imitation_resolution",
            "decades",
        )
        check_not_negative(self, "imitation_decay")
        check_draws(self)
        if self.baseline not in BASELINES:
            raise ValueError(
                f"`baseline` must be one of {BASELINES}. Received: {self.baseline!r}"
            )
        self._check_learner()
        self.finished_form()  # raises if its form cannot be so
        for chosen in ("training", "validation"):
            self.templates(chosen)  # raises if a name is unknown

    def _check_learner(self) -> None:
        """Refuses what would be overruled without a word."""
        fields = dataclasses.fields(LearnerConfig)
        defaults = {field.name: field.default for field in fields}
        for name in _FOLLOWING:
            if getattr(self.learner, name) != defaults[name]:
                raise ValueError(
                    f"`learner.{name}` follows from the run's other settings: leave it "
                    f"out. Received: {getattr(self.learner, name)!r}"
                )
        if getattr(self.learner.action_form, "lift", 0.0):
            raise ValueError(
                "Only the finished controller is lifted: set `lift`, not "
                f"`learner.action_form.lift`. Received: {self.learner.action_form}"
            )

    def finished_form(self) -> ActionForm:
        """Returns the action form of the controller that the run ends with.

        Raises:
            ValueError: If there is a lift and the form has no factor to lift, the
                envelope is unknown or the average too long.
        """
        form = self.learner.action_form
        how = (self.lift or None, self.envelope or None, self.average or None)
        return changed(form, *how)

    def with_seed(self, seed: int) -> "MetaTrainConfig":
        """Returns the same settings with other tasks and another learner."""
        learner = dataclasses.replace(self.learner, seed=seed)
        return dataclasses.replace(self, seed=seed, learner=learner)

    def templates(self, chosen: str) -> list[TaskTemplate]:
        """Returns the templates of "training" or "validation".

        Raises:
            ValueError: If the split has none of that name.
        """
        return choose_templates(chosen, getattr(self, chosen))


def check_positive(settings: Any, *names: str) -> None:
    """Raises ValueError where one of these settings is not positive and finite."""
    for name in names:
        value = getattr(settings, name)
        if not 0 < value < float("inf"):
            raise ValueError(
                f"`{name}` must be positive and finite. Received: {value!r}"
            )


def check_not_negative(settings: Any, *names: str) -> None:
    """Raises ValueError where one is negative, or not finite."""
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value < float("inf"):
            raise ValueError(
                f"`{name}` must be 0 or positive, and finite. Received: {value!r}"
            )


def check_share(settings: Any, name: str) -> None:
    """Raises ValueError if an attribute is not between 0 and 1, inclusive."""
    if not 0.0 <= getattr(settings, name) <= 1.0:
        raise ValueError(
            f"`{name}` must be a share. Received: {getattr(settings, name)}"
        )


def check_draws(settings: Any) -> None:
    """Raises ValueError where tasks cannot be drawn with these horizons or labels."""
    if not settings.shortest_horizon <= settings.longest_horizon:
        raise ValueError(
            "`longest_horizon` must not be below `shortest_horizon`. Received: "
            f"{settings.longest_horizon} and {settings.shortest_horizon}"
        )
    if not LEAST_WRONG <= settings.most_wrong < 1:
        raise ValueError(
            f"`most_wrong` must be at least {LEAST_WRONG} and below 1. Received: "
            f"{settings.most_wrong!r}"
        )


def read_config(path: str | Path) -> MetaTrainConfig:
    """Reads a TOML file of settings; what it does not name keeps its default.

    Args:
        path: A file, or the name of one that ships: "small", "default" or
            "memory".

    Raises:
        ValueError: If there is no such file, it is no TOML, a key is unknown or a
            value is out of its range.
    """
    shipped = SHIPPED / f"{path}.toml"
    file = shipped if shipped.is_file() else Path(path)
    if not file.is_file():
        names = ", ".join(sorted(f.stem for f in SHIPPED.glob("*.toml")))
        raise ValueError(
            f"No such config file, and none of that name ships ({names}). Received: "
            f"{str(path)!r}"
        )
    return MetaTrainConfig.from_config(read_toml(file, "MetaTrainConfig"))


def read_toml(file: Path, name: str) -> dict[str, Any]:
    """Returns the settings in a TOML file, as `Configurable.from_config` reads them.

    Args:
        file: The file.
        name: The class that they are of.

    Raises:
        ValueError: If it is no TOML.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is not valid TOML: {error}") from None
    return _completed(content, name)


def _completed(table: dict[str, Any], name: str | None) -> dict[str, Any]:
    """Returns a table with the names and versions that people leave out."""
    found = {
        key: _completed(value, _NAMES.get(key)) if isinstance(value, dict) else value
        for key, value in table.items()
    }
    return {"name": name, "version": 1, **found}
