"""The observation: which features, in which order."""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from keras_learned_lr.observation.features import FEATURES
from keras_learned_lr.observation.memory import Memory, with_firsts, with_window
from keras_learned_lr.observation.statistics import Statistics

# Changes whenever the meaning of a feature does.
SPEC_VERSION = 1
PUBLISHED = (
    "learning_rate",
    "training_loss",
    "validation_loss",
    "layer_mean",
    "layer_variance",
    "output_variance_after",
    "output_variance_before",
    "output_variance_difference",
    "input_mean",
    "input_variance",
)
DEFAULT = (
    "log_level",
    "progress",
    "log_horizon",
    "log_window",
    "first_decision",
    "previous_action",
    "nonfinite",
    "training_vs_first",
    "training_vs_previous",
    "training_vs_best",
    "training_trend",
    "training_noise",
    "training_peak",
    "validation_vs_first",
    "validation_vs_previous",
    "validation_vs_best",
    "validation_trend",
    "validation_vs_training",
    "log_update_ratio",
    "update_cosine",
    "log_output_growth",
    "log_output_change",
)


class ObservationSpec:
    """Which features a controller sees, in order.

    Args:
        names: Feature names, keys of `FEATURES`. The default is the scale-free set;
            `ObservationSpec(PUBLISHED)` is that of the published system.

    Raises:
        ValueError: If a name is unknown or appears twice, or there is none.

    Attributes:
        names: The feature names, a tuple.
        version: Changes whenever the meaning of a feature does.
    """

    def __init__(self, names: Iterable[str] = DEFAULT) -> None:
        self.names = tuple(names)
        self.version = SPEC_VERSION
        unknown = [name for name in self.names if name not in FEATURES]
        if unknown:
            raise ValueError(
                f"Unknown features: {unknown}. Known: {', '.join(sorted(FEATURES))}"
            )
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(
                "An observation needs at least one feature and each at most once. "
                f"Received: {self.names}"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObservationSpec) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        return f"ObservationSpec({self.names})"

    @property
    def needs(self) -> frozenset[str]:
        """The measurements that the probe must take."""
        return frozenset().union(*(FEATURES[name].needs for name in self.names))

    def to_config(self) -> dict[str, Any]:
        """Returns names and version, JSON-ready."""
        return {"version": self.version, "names": list(self.names)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ObservationSpec":
        """Builds the spec that `to_config` described.

        Raises:
            ValueError: If it is of another version, or names a feature that this
                package does not know.
        """
        if config.get("version") != SPEC_VERSION:
            raise ValueError(
                "The controller was made for observations of version "
                f"{config.get('version')!r}; this keras_learned_lr makes version "
                f"{SPEC_VERSION}. Install the version it was made with, or export the "
                "controller again."
            )
        return cls(config.get("names", ()))


def observe(
    spec: ObservationSpec, statistics: Statistics, memory: Memory
) -> tuple[tf.Tensor, Memory]:
    """Turns a window's statistics into the observation.

    Args:
        spec: Which features, in which order.
        statistics: The window's measurements, scalars or `[batch]`.
        memory: What earlier windows left; see `initial_memory`.

    Returns:
        The observation, float32 `[features]` or `[batch, features]`, always finite: a
        feature that cannot be computed is 0. And the memory for the next window, which
        a non-finite loss leaves as it was.
    """
    memory = with_firsts(statistics, memory)
    features = [FEATURES[name] for name in spec.names]
    values = tf.stack([f.compute(statistics, memory) for f in features], axis=-1)
    values /= tf.constant([f.scale for f in features])
    limits = tf.constant([f.limit for f in features])
    values = tf.clip_by_value(values, -limits, limits)
    values = tf.where(tf.math.is_finite(values), values, 0.0)
    return values, with_window(statistics, memory)
