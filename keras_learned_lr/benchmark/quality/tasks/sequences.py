"""Tasks on signals: a chaotic series, and waveforms under noise."""

import keras
import numpy as np

from keras_learned_lr.benchmark.quality.task import Data, Task, split

layers, optimizers = keras.layers, keras.optimizers
HISTORY, AHEAD = 20, 8
WAVEFORM_STEPS = 64


def _mackey_glass() -> Data:
    """The series of Mackey & Glass 1977 (delay 17), looked at every 3 time units.

    The parts follow each other in time.
    """
    delay, stride, per_unit = 17, 3, 10
    random = np.random.default_rng(0)
    values = list(1.2 + 0.1 * random.normal(size=delay * per_unit + 1))
    length = 8000
    for _ in range((length + 100) * stride * per_unit):
        now, delayed = values[-1], values[-1 - delay * per_unit]
        change = 0.2 * delayed / (1.0 + delayed**10) - 0.1 * now
        values.append(now + change / per_unit)
    series = np.array(values[:: stride * per_unit])[-length:]
    series = (series - series.mean()) / series.std()
    seen = series + random.normal(scale=0.15, size=length)
    starts = np.arange(length - HISTORY - AHEAD)
    x = seen[starts[:, np.newaxis] + np.arange(HISTORY), np.newaxis].astype("float32")
    y = seen[starts + HISTORY + AHEAD - 1, np.newaxis].astype("float32")
    # A gap of a window between the parts: they share no value.
    gap = HISTORY + AHEAD
    cuts = ((0, 5500), (5500 + gap, 6500), (6500 + gap, len(x)))
    return Data(*((x[a:b], y[a:b]) for a, b in cuts))


def _waveforms() -> Data:
    """Sines, squares, triangles, saw teeth, rising tones, beats and decays."""
    count = 12_000
    random = np.random.default_rng(0)
    time = np.linspace(0.0, 1.0, WAVEFORM_STEPS)
    label = random.integers(0, 7, count)
    frequency = random.uniform(2.0, 8.0, (count, 1))
    phase = random.uniform(0.0, 1.0, (count, 1))
    turns = frequency * time + phase
    sine = np.sin(2 * np.pi * turns)
    saw = 2.0 * (turns % 1.0) - 1.0
    shapes = [
        sine,
        np.sign(sine),
        2.0 * np.abs(saw) - 1.0,
        saw,
        np.sin(2 * np.pi * (turns + frequency * time**2)),
        sine * np.sin(np.pi * time * frequency / 2),
        sine * np.exp(-2.0 * time),
    ]
    x = np.choose(label[:, np.newaxis], shapes)
    x = x * random.uniform(0.5, 2.0, (count, 1))
    x += random.normal(scale=0.4, size=x.shape)
    return split(x[..., np.newaxis].astype("float32"), label, 1000, 2000)


def _lstm() -> keras.Model:
    return keras.Sequential(
        [keras.Input((HISTORY, 1)), layers.LSTM(24), layers.Dense(1)]
    )


def _convolutions() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((WAVEFORM_STEPS, 1)),
            layers.Conv1D(16, 7, 2, activation="swish"),
            layers.LayerNormalization(),
            layers.Conv1D(32, 5, 2, activation="swish"),
            layers.GlobalMaxPooling1D(),
            layers.Dense(7, "softmax"),
        ]
    )


TASKS = (
    Task(
        "chaos_lstm",
        _mackey_glass,
        _lstm,
        "mean_squared_error",
        optimizers.Adam,
        learning_rate=0.01,
        steps=600,
        batch_size=32,
    ),
    Task(
        "waveforms_cnn",
        _waveforms,
        _convolutions,
        "sparse_categorical_crossentropy",
        lambda rate: optimizers.SGD(rate, momentum=0.9, nesterov=True),
        learning_rate=0.03,
        steps=1200,
        batch_size=32,
        accuracy=True,
    ),
)
