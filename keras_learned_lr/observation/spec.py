"""The observation: which features, in which order."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import tensorflow as tf

from keras_learned_lr.observation.features import FEATURES, Feature
from keras_learned_lr.observation.memory import (
    Memory,
    initial_memory,
    with_firsts,
    with_window,
)
from keras_learned_lr.observation.statistics import Statistics

# Changes whenever the meaning of a feature does.
SPEC_VERSION = 3
# In version 2 outputs were those for a window's last batch in place of validation
# examples, in version 1 for its first, and there were no averages: near enough for the
# controllers of then (docs/experiments.md, 33).
READABLE = (1, 2, SPEC_VERSION)
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


class _Seen(NamedTuple):
    """One number of the observation: a feature, or a running average of it."""

    feature: Feature
    decay: float | None


class ObservationSpec:
    """Which features a controller sees, in order.

    Args:
        names: Feature names, keys of `FEATURES`; or "name@decay", the running average
            of a feature over the decisions so far: decay × what it was + (1 - decay) ×
            the feature, from 0. The default is the scale-free set;
            `ObservationSpec(PUBLISHED)` is that of the published system.

    Raises:
        ValueError: If a name is unknown or appears twice, or there is none; or if a
            decay is not between 0 and 1.

    Attributes:
        names: The feature names, a tuple.
        version: Changes whenever the meaning of a feature does.
    """

    def __init__(self, names: Iterable[str] = DEFAULT) -> None:
        self.names = tuple(names)
        self.version = SPEC_VERSION
        split = [name.partition("@") for name in self.names]
        unknown = [name for name, _, _ in split if name not in FEATURES]
        if unknown:
            raise ValueError(
                f"Unknown features: {unknown}. Known: {', '.join(sorted(FEATURES))}"
            )
        self._seen = [
            _Seen(FEATURES[name], _as_decay(name, decay) if at else None)
            for name, at, decay in split
        ]
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
        return frozenset().union(*(seen.feature.needs for seen in self._seen))

    @property
    def scales(self) -> list[float]:
        """What the features were divided by; an average is scaled as its feature."""
        return [seen.feature.scale for seen in self._seen]

    def initial_memory(self, shape: tuple[int, ...] = ()) -> Memory:
        """Returns the memory of a run that has not begun, for trainees of `shape`."""
        return initial_memory(shape, sum(s.decay is not None for s in self._seen))

    def compute(
        self, statistics: Statistics, memory: Memory
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the features of a window; see `observe`.

        Returns:
            The observation, and the running averages in it for the next window.
        """
        computed: dict[int, tf.Tensor] = {}
        values, averages = [], []
        before = iter(tf.unstack(memory.averages, axis=-1))
        for feature, decay in self._seen:
            value = computed.get(id(feature))
            if value is None:
                value = feature.compute(statistics, memory) / feature.scale
                value = tf.clip_by_value(value, -feature.limit, feature.limit)
                value = tf.where(tf.math.is_finite(value), value, 0.0)
                computed[id(feature)] = value
            if decay is not None:
                value = decay * next(before) + (1.0 - decay) * value
                averages.append(value)
            values.append(value)
        kept = tf.stack(averages, axis=-1) if averages else memory.averages
        return tf.stack(values, axis=-1), kept

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
        if config.get("version") not in READABLE:
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
        memory: What earlier windows left; see `ObservationSpec.initial_memory`.

    Returns:
        The observation, float32 `[features]` or `[batch, features]`, always finite: a
        feature that cannot be computed is 0. And the memory for the next window, of
        which a non-finite loss moves nothing but the averages of what was seen.
    """
    memory = with_firsts(statistics, memory)
    values, averages = spec.compute(statistics, memory)
    return values, with_window(statistics, memory)._replace(averages=averages)


def _as_decay(name: str, text: str) -> float:
    try:
        decay = float(text)
    except ValueError:
        decay = -1.0
    if not 0.0 < decay < 1.0:
        raise ValueError(
            f"The decay of an average must be between 0 and 1. Received: {name}@{text}"
        )
    return decay
