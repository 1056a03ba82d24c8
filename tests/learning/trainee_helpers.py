"""Small trainees for the tests, and the members of a batch made of Keras models."""

import keras
import numpy as np
import tensorflow as tf

from keras_learned_lr.learning.optimizers import make_settings
from keras_learned_lr.learning.trainee_state import Members

LAYERS = keras.layers


def mlp():
    return keras.Sequential(
        [
            keras.Input((6,)),
            LAYERS.Dense(8, "relu", kernel_regularizer=keras.regularizers.L2(1e-3)),
            LAYERS.Dense(7, "tanh"),
            LAYERS.Dense(3, "softmax"),
        ]
    )


def cnn():
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            LAYERS.Conv2D(4, 3, padding="same", activation="relu"),
            LAYERS.MaxPooling2D(),
            # Without a bias: before a normalisation its gradient is nothing but noise.
            LAYERS.Conv2D(5, 3, strides=2, use_bias=False),
            LAYERS.BatchNormalization(),
            LAYERS.ReLU(),
            LAYERS.Flatten(),
            LAYERS.Dense(3, "softmax"),
        ]
    )


def gru():
    return keras.Sequential(
        [
            keras.Input((5, 3)),
            LAYERS.GRU(6, return_sequences=True),
            LAYERS.GRU(4),
            LAYERS.Dense(3, "softmax"),
        ]
    )


def lstm():
    """A recurrent model without a rule of its own."""
    return keras.Sequential(
        [keras.Input((5, 3)), LAYERS.LSTM(4), LAYERS.Dense(3, "softmax")]
    )


def attention():
    x = inputs = keras.Input((6,), dtype="int32")
    x = LAYERS.Embedding(11, 8)(x)
    y = LAYERS.MultiHeadAttention(2, 4)(x, x)
    x = LAYERS.LayerNormalization()(x + y)
    x = LAYERS.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, LAYERS.Dense(3, "softmax")(x))


def dropout():
    return keras.Sequential(
        [
            keras.Input((6,)),
            LAYERS.Dense(8, "relu"),
            LAYERS.Dropout(0.3, seed=5),
            LAYERS.Dense(3, "softmax"),
        ]
    )


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inside = LAYERS.Dense(8, "relu", activity_regularizer="l2")
        self.outside = LAYERS.Dense(3, "softmax")

    def call(self, x):
        return self.outside(self.inside(x))


def subclassed():
    model = Subclassed()
    model(tf.zeros([2, 6]))
    return model


MAKERS = {f.__name__: f for f in (mlp, cnn, gru, lstm, attention, dropout, subclassed)}
SHAPES = {"cnn": (8, 8, 2), "gru": (5, 3), "lstm": (5, 3)}
CLASSES = 3


def data(name, examples, seed=0):
    """A learnable problem for the model of that name."""
    rng = np.random.default_rng(seed)
    dtype = keras.config.floatx()
    if name == "attention":
        x = rng.integers(0, 11, size=(examples, 6)).astype("int32")
        return x, (x.sum(1) % CLASSES).astype("int32")
    x = rng.normal(size=(examples, *SHAPES.get(name, (6,)))).astype(dtype)
    flat = x.reshape(examples, -1)
    y = (flat @ rng.normal(size=(flat.shape[1], CLASSES))).argmax(1)
    return x, y.astype("int32")


def weights(model):
    """A model's variables as one trainee's rows of `Members`."""
    parameters = [
        keras.ops.convert_to_numpy(v).ravel() for v in model.trainable_variables
    ]
    moving = [keras.ops.convert_to_numpy(v) for v in model.non_trainable_variables]
    return np.concatenate(parameters), moving


def members(
    models,
    x,
    y,
    kind="adam",
    batch_size=16,
    rows=64,
    validation_rows=(),
    rates=1e-2,
    horizon=40,
    order=None,
    mask=None,
    **settings,
):
    """Members with the weights of `models`, all on the same data."""
    batch = len(models)
    parameters, moving = zip(*map(weights, models), strict=True)
    if order is None:
        steps = np.arange(rows).reshape(-1, batch_size)
        order = np.stack([np.roll(steps, i, axis=0) for i in range(batch)])
    validation = None
    if len(validation_rows):
        validation = tf.tile(tf.constant([validation_rows], tf.int32), [batch, 1])
    rates = tf.broadcast_to(tf.constant(rates, tf.float32), [batch])
    return Members(
        inputs=tf.constant(x),
        targets=tf.constant(y),
        order=tf.constant(order, tf.int32),
        validation=validation,
        parameters=tf.constant(np.stack(parameters)),
        non_trainable=tuple(
            tf.constant(np.stack(v)) for v in zip(*moving, strict=True)
        ),
        mask=mask,
        settings=make_settings(kind, batch, **settings),
        default_learning_rate=rates,
        learning_rate=rates,
        horizon=tf.constant(horizon, tf.int64),
    )
