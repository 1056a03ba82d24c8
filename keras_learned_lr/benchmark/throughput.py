"""How many training steps a second: `fit` against the batched trainees.

All numbers are ratios of medians taken in turns in one process, so that a busy machine
slows both sides alike.
"""

import dataclasses
import resource
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_learned_lr.callback import VALIDATION_SIZE
from keras_learned_lr.control.actions import AnchoredScaleFactor
from keras_learned_lr.learning.optimizers import make_settings
from keras_learned_lr.learning.trainee_state import Members, Template
from keras_learned_lr.learning.trainees import Trainees
from keras_learned_lr.observation.spec import ObservationSpec

LOSS = "sparse_categorical_crossentropy"
EXAMPLES, CLASSES = 512, 10
# Training steps between two decisions, for the callback and for the trainees.
WINDOW = 20
# What a window costs without features: a spec that measures nothing.
BARE = ObservationSpec(["progress"])
layers = keras.layers


def _mlp(width: int) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((width,)),
            layers.Dense(width, "relu"),
            layers.Dense(width, "relu"),
            layers.Dense(CLASSES, "softmax"),
        ]
    )


def _gru() -> keras.Model:
    return keras.Sequential(
        [keras.Input((8, 8)), layers.GRU(16), layers.Dense(CLASSES, "softmax")]
    )


def _attention() -> keras.Model:
    inputs = keras.Input((8, 8))
    x = layers.Dense(16)(inputs)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 8)(x, x))
    x = x + layers.Dense(16)(layers.Dense(32, "relu")(x))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES, "softmax")(x))


def _cnn(side: int, filters: tuple[int, int]) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((side, side, 1)),
            layers.Conv2D(filters[0], 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(filters[1], 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(CLASSES, "softmax"),
        ]
    )


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model and how many trainees of it are stepped at once.

    Attributes:
        make: Builds the model.
        trainees: As many as were measured to be fast and fit into memory.
        batch_size: Examples of a training step.
    """

    make: Callable[[], keras.Model]
    trainees: int
    batch_size: int = 64


WORKLOADS = {
    "mlp": Workload(lambda: _mlp(64), 128),
    "small_mlp": Workload(lambda: _mlp(32), 128, batch_size=32),
    "gru": Workload(_gru, 64),
    "attention": Workload(_attention, 64),
    "small_cnn": Workload(lambda: _cnn(14, (4, 8)), 32),
    "cnn": Workload(lambda: _cnn(28, (16, 32)), 4),
}


# Trains for so many windows and returns the training steps per second.
Path = Callable[[int], float]


def run(seconds: float = 120.0, rounds: int = 5) -> dict[str, Any]:
    """Measures everything.

    Args:
        seconds: What to spend on measuring; building the graphs comes on top.
        rounds: In how many turns.

    Returns:
        A dict, JSON-ready. `mlp_ratio`, `small_mlp_ratio`, `gru_ratio`,
        `attention_ratio` and `small_cnn_ratio`: steps per second of the batched
        trainees with features over those of `fit` with a Python callback.
        `cnn_bound_share`: steps per second of the large CNN over what its convolutions
        alone, forwards and backwards, would allow. `features_overhead`: time that
        features add to the MLP's bare stepping. `memory`: bytes that 128 such MLPs
        hold and by how much the process grew while they trained. `build_seconds`: time
        to the end of the first window, by workload. `steps`: the steps per second
        behind the ratios, by workload and path.
    """
    before = _peak_memory()
    mlp = _Engine(WORKLOADS["mlp"], ObservationSpec())
    memory = {
        "trainees": WORKLOADS["mlp"].trainees,
        "state_bytes": mlp.state_bytes,
        "grown_bytes": _peak_memory() - before,
    }
    paths: dict[tuple[str, str], Path] = {
        ("mlp", "trainees"): mlp,
        ("mlp", "bare"): _Engine(WORKLOADS["mlp"], BARE),
        ("cnn", "convolutions"): _Convolutions(),
    }
    build_seconds = {"mlp": mlp.build_seconds}
    for name, workload in WORKLOADS.items():
        if name != "mlp":
            engine = _Engine(workload, ObservationSpec())
            paths[name, "trainees"] = engine
            build_seconds[name] = engine.build_seconds
        paths[name, "fit"] = _Fit(workload, 1)
        paths[name, "fit_20"] = _Fit(workload, WINDOW)
    rates = _measure(paths, seconds, rounds)
    steps: dict[str, dict[str, float]] = {}
    for (name, path), values in rates.items():
        steps.setdefault(name, {})[path] = float(np.median(values))

    def ratio(name: str, over: str, under: str) -> float:
        return float(np.median(rates[name, over] / rates[name, under]))

    return {
        **{
            f"{name}_ratio": ratio(name, "trainees", "fit")
            for name in WORKLOADS
            if name != "cnn"
        },
        "cnn_bound_share": ratio("cnn", "trainees", "convolutions"),
        "features_overhead": ratio("mlp", "bare", "trainees") - 1.0,
        "memory": memory,
        "build_seconds": build_seconds,
        "steps": steps,
    }


def _measure(
    paths: dict[tuple[str, str], Path], seconds: float, rounds: int
) -> dict[tuple[str, str], np.ndarray]:
    """Returns the steps per second of each path, an array with one entry a round."""
    share = seconds / rounds / len(paths)
    windows = {}
    for key, path in paths.items():
        path(1)  # builds the graphs
        started = time.perf_counter()
        path(1)
        windows[key] = max(1, int(share / (time.perf_counter() - started)))
    turns = [
        {key: path(windows[key]) for key, path in paths.items()} for _ in range(rounds)
    ]
    return {key: np.array([turn[key] for turn in turns]) for key in paths}


def _peak_memory() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _data(model: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    shape = (EXAMPLES + VALIDATION_SIZE, *model.input_shape[1:])
    x = random.normal(size=shape).astype("float32")
    return x, random.integers(0, CLASSES, size=len(x)).astype("int32")


class _Engine:
    """The batched trainees, one decision a window."""

    def __init__(self, workload: Workload, spec: ObservationSpec) -> None:
        model, count = workload.make(), workload.trainees
        x, y = _data(model)
        random = np.random.default_rng(1)
        order = [random.permutation(EXAMPLES) for _ in range(count)]
        weights = [np.ravel(v.numpy()) for v in model.trainable_variables]
        rates = tf.fill([count], 1e-3)
        self._members = Members(
            inputs=tf.constant(x),
            targets=tf.constant(y),
            order=tf.constant(
                np.reshape(order, [count, -1, workload.batch_size]), tf.int32
            ),
            validation=tf.tile([tf.range(EXAMPLES, len(x))], [count, 1]),
            parameters=tf.tile([np.concatenate(weights)], [count, 1]),
            non_trainable=tuple(
                tf.repeat(v.value[tf.newaxis], count, axis=0)
                for v in model.non_trainable_variables
            ),
            mask=None,
            settings=make_settings("adam", count),
            default_learning_rate=rates,
            learning_rate=rates,
            horizon=tf.constant(10**9, tf.int64),
        )
        self._count = count
        started = time.perf_counter()
        self._trainees = Trainees(Template(model, LOSS), spec, AnchoredScaleFactor())
        self._state, _ = self._trainees.begin(self._members)
        self(1)
        self.build_seconds = time.perf_counter() - started

    @property
    def state_bytes(self) -> int:
        """What the trainees hold between two windows."""
        leaves = tf.nest.flatten(self._state)
        return sum(leaf.dtype.size * int(tf.size(leaf)) for leaf in leaves)

    def __call__(self, windows: int) -> float:
        action = tf.zeros([self._count])
        started = time.perf_counter()
        for _ in range(windows):
            self._state, look = self._trainees.advance(
                self._members, self._state, action, tf.constant(WINDOW, tf.int64)
            )
            look.observation.numpy()
        taken = time.perf_counter() - started
        return windows * WINDOW * self._count / taken


class _Clock(keras.callbacks.Callback):
    """Sets the learning rate every window, as a plain Python callback would."""

    def __init__(self) -> None:
        super().__init__()
        self.started = 0.0
        self._steps = 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        # The first epoch starts the iterator and is not timed.
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if logs is not None and (batch + 1) % WINDOW == 0:
            self.model.optimizer.learning_rate = 1e-3 / (1.0 + 0.0 * logs["loss"])


class _Fit:
    """`fit` on batches that lie ready, so that it waits for no data."""

    def __init__(self, workload: Workload, steps_per_execution: int) -> None:
        self._model = model = workload.make()
        x, y = _data(model)
        x = x[:EXAMPLES].reshape(-1, workload.batch_size, *x.shape[1:])
        y = y[:EXAMPLES].reshape(-1, workload.batch_size)
        self._batches = tf.data.Dataset.from_tensor_slices((x, y)).repeat()
        model.compile("adam", LOSS, steps_per_execution=steps_per_execution)

    def __call__(self, windows: int) -> float:
        clock = _Clock()
        self._model.fit(
            self._batches,
            epochs=2,
            steps_per_epoch=windows * WINDOW,
            verbose=0,
            callbacks=[clock],
        )
        return windows * WINDOW / (time.perf_counter() - clock.started)


class _Convolutions:
    """The convolutions of the large CNN alone, forwards and backwards."""

    def __init__(self) -> None:
        workload = WORKLOADS["cnn"]
        model = workload.make()
        kernels, inputs = [], []
        for layer in model.layers:
            if isinstance(layer, layers.Conv2D):
                kernels.append(layer.kernel.value.read_value())
                shape = (workload.batch_size, *layer.input.shape[1:])
                inputs.append(tf.random.stateless_normal(shape, [0, 1]))

        def body(step: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            for index, (x, kernel) in enumerate(zip(inputs, kernels, strict=True)):
                # Depends on the step, so that nothing is computed once for all.
                x = x + total
                y = tf.nn.conv2d(x, kernel, 1, "VALID")
                by_kernel = tf.raw_ops.Conv2DBackpropFilter(
                    input=x,
                    filter_sizes=kernel.shape,
                    out_backprop=y,
                    strides=[1] * 4,
                    padding="VALID",
                )
                total += 1e-30 * by_kernel[0, 0, 0, 0]
                if index:  # nobody needs the gradient of the images
                    by_input = tf.raw_ops.Conv2DBackpropInput(
                        input_sizes=x.shape,
                        filter=kernel,
                        out_backprop=y,
                        strides=[1] * 4,
                        padding="VALID",
                    )
                    total += 1e-30 * by_input[0, 0, 0, 0]
            return step + 1, total

        def steps(count: tf.Tensor) -> tf.Tensor:
            start = (tf.constant(0), tf.zeros(()))
            return tf.while_loop(lambda step, _: step < count, body, start)[1]

        self._steps = tf.function(steps, autograph=False)

    def __call__(self, windows: int) -> float:
        started = time.perf_counter()
        self._steps(tf.constant(windows * WINDOW)).numpy()
        return windows * WINDOW / (time.perf_counter() - started)
