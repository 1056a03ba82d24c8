"""Everything that defines a learner, as one JSON-ready dataclass."""

import dataclasses
from typing import Any, ClassVar

from keras_learned_lr.control.actions import ActionForm, AnchoredScaleFactor
from keras_learned_lr.control.config import Configurable
from keras_learned_lr.learning.rewards import LogImprovement, Reward
from keras_learned_lr.observation.spec import DEFAULT, ObservationSpec

ALGORITHMS = ("ppo", "reinforce")
NETWORKS = ("mlp", "lstm")


@dataclasses.dataclass(frozen=True)
class LearnerConfig(Configurable):
    """Settings of a `ControllerLearner`.

    Attributes:
        algorithm: "ppo" (clipped; Schulman et al. 2017) or "reinforce" (Williams
            1992, with the critic as baseline).
        network: "mlp", or "lstm" with a recurrent layer behind the dense ones. Actor
            and critic are separate networks of the same shape.
        observation: Names of the features that the controller sees, in order.
        averages: Decays of running averages of each of these over the decisions so
            far, which it sees too; see `ObservationSpec`.
        privileged: How many numbers behind the observation only the critic sees
            (asymmetric actor-critic; Pinto et al. 2018). An environment that knows more
            than a controller may see appends them; inside `fit` there are none.
        action_form: What its actions mean, and when it decides.
        reward: What an action earns.
        discount: γ per decision. Near 1, since a short-sighted controller picks
            learning rates far too small (Wu et al. 2018).
        gae_lambda: λ of generalized advantage estimation (PPO).
        hidden: Units of the dense tanh layers.
        lstm_size: Units of the recurrent layer.
        learning_rate: Of the learner's own Adam at its first update.
        final_learning_rate: The same after `annealing_updates`, falling geometrically.
        clip: How far the probability ratio may move before PPO stops caring.
        passes: Passes over the collected episodes in one update (PPO). REINFORCE makes
            one, as its gradient holds only for the policy that sampled.
        minibatches: Into how many parts, by episodes, PPO cuts each pass.
        initial_deviation: Standard deviation of the sampled action at the first
            update. It is scheduled, not learned; so there is no entropy bonus, which
            would have nothing to act on.
        final_deviation: The same after `annealing_updates`, falling linearly.
        annealing_updates: Updates over which both schedules run.
        gradient_clipping: Largest global norm of a gradient, or None.
        episodes_per_update: Finished episodes that make an update due.
        train_every: Where it is a number N, an update is due at every N-th decision
            too, without waiting for episodes to end (PPO only).
        capacity: Frames per trainee that the replay buffer holds. Beyond the end of
            an episode, a full buffer also makes an update due.
        seed: Of the initial weights, the exploration and the minibatches.
    """

    kind: ClassVar[str] = "learner"
    algorithm: str = "ppo"
    network: str = "mlp"
    observation: tuple[str, ...] = DEFAULT
    averages: tuple[float, ...] = ()
    privileged: int = 0
    action_form: ActionForm = AnchoredScaleFactor()
    reward: Reward = LogImprovement()
    discount: float = 1.0
    gae_lambda: float = 0.97
    hidden: tuple[int, ...] = (64, 64)
    lstm_size: int = 32
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-4
    clip: float = 0.2
    passes: int = 10
    minibatches: int = 1
    initial_deviation: float = 0.5
    final_deviation: float = 0.15
    annealing_updates: int = 100
    gradient_clipping: float | None = 1.0
    episodes_per_update: int = 8
    train_every: int | None = None
    capacity: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        # JSON has no tuples.
        object.__setattr__(self, "observation", tuple(self.observation))
        object.__setattr__(self, "averages", tuple(self.averages))
        object.__setattr__(self, "hidden", tuple(self.hidden))
        self.observation_spec  # noqa: B018  raises if it names none
        self._check("algorithm", self.algorithm in ALGORITHMS, f"one of {ALGORITHMS}")
        self._check("network", self.network in NETWORKS, f"one of {NETWORKS}")
        is_form = isinstance(self.action_form, ActionForm)
        self._check("action_form", is_form, "an ActionForm")
        self._check("reward", isinstance(self.reward, Reward), "a Reward")
        for name in ("discount", "gae_lambda"):
            self._check(name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        for name in (
            "learning_rate",
            "final_learning_rate",
            "initial_deviation",
            "final_deviation",
            "clip",
        ):
            self._check(name, 0 < getattr(self, name) < float("inf"), "positive")
        for name in (
            "lstm_size",
            "passes",
            "minibatches",
            "annealing_updates",
            "episodes_per_update",
        ):
            self._check(name, _is_count(getattr(self, name)), "an int of at least 1")
        units = bool(self.hidden) and all(map(_is_count, self.hidden))
        self._check("hidden", units, "ints of at least 1, one a layer")
        known = _is_count(self.privileged) or self.privileged == 0
        self._check("privileged", known, "an int of at least 0")
        clipping = self.gradient_clipping
        self._check("gradient_clipping", clipping is None or clipping > 0, "positive")
        long_enough = _is_count(self.capacity) and self.capacity > 1
        self._check("capacity", long_enough, "an int of at least 2")
        if self.train_every is not None:
            self._check(
                "train_every", _is_count(self.train_every), "None or at least 1"
            )
            fits = self.train_every < self.capacity
            self._check("train_every", fits, f"below `capacity` ({self.capacity})")
            if self.algorithm == "reinforce":
                raise ValueError(
                    "REINFORCE learns from whole episodes only, so it trains at their "
                    "end: leave `train_every` None and set `episodes_per_update`. "
                    f"Received: train_every={self.train_every!r}"
                )

    def _check(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ValueError(
                f"`{name}` must be {wanted}. Received: {getattr(self, name)!r}"
            )

    @property
    def observation_spec(self) -> ObservationSpec:
        """What the controller sees, as a spec."""
        averaged = [f"{n}@{decay}" for decay in self.averages for n in self.observation]
        return ObservationSpec([*self.observation, *averaged])

    def learning_rate_at(self, update: int) -> float:
        """Returns the learner's own learning rate after `update` updates."""
        share = min(update / self.annealing_updates, 1.0)
        ratio = self.final_learning_rate / self.learning_rate
        return self.learning_rate * ratio**share

    def deviation_at(self, update: int) -> float:
        """Returns the standard deviation of the action after `update` updates."""
        share = min(update / self.annealing_updates, 1.0)
        change = self.final_deviation - self.initial_deviation
        return self.initial_deviation + share * change


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
