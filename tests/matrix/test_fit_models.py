"""The matrix: models of every build."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import check_run, classes_of, compiled, draws, sparse

from keras_learned_lr import LearnedLearningRate

LAYER = keras.layers


def table(examples=64):
    x = draws().normal(size=(examples, 6)).astype("float32")
    return x, classes_of(x, 3)


def sequences(examples=64, steps=5):
    x = draws().normal(size=(examples, steps, 4)).astype("float32")
    return x, classes_of(x, 3)


def test_sequential():
    body = [keras.Input((6,)), LAYER.Dense(8, "relu"), LAYER.Dense(3)]
    check_run(compiled(keras.Sequential(body)), *table(), batch_size=16)


def test_sequential_that_its_first_batch_builds():
    trainee = keras.Sequential([LAYER.Dense(8, "relu"), LAYER.Dense(3)])
    check_run(compiled(trainee), *table(), batch_size=16)


def test_functional_with_a_branch():
    inputs = keras.Input((6,))
    hidden = LAYER.Dense(6, "relu")(inputs)
    outputs = LAYER.Dense(3)(LAYER.Concatenate()([hidden + inputs, inputs]))
    check_run(compiled(keras.Model(inputs, outputs)), *table(), batch_size=16)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.norm = LAYER.Dense(8), LAYER.LayerNormalization()
        self.head = LAYER.Dense(3)

    def call(self, inputs, training=False):
        return self.head(keras.ops.relu(self.norm(self.hidden(inputs))))


def test_subclassed():
    check_run(compiled(Subclassed()), *table(), batch_size=16)


def test_several_inputs_and_outputs_with_several_losses():
    x, y = table()
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    joined = LAYER.Dense(8, "relu")(LAYER.Concatenate()([left, right]))
    heads = {
        "kind": LAYER.Dense(3, name="kind")(joined),
        "size": LAYER.Dense(1, name="size")(joined),
    }
    trainee = compiled(
        keras.Model({"left": left, "right": right}, heads),
        {"kind": sparse(), "size": "mse"},
        loss_weights={"kind": 1.0, "size": 0.3},
        metrics={"kind": ["accuracy"]},
    )
    inputs = {"left": x[:, :3], "right": x[:, 3:]}
    targets = {"kind": y, "size": x.sum(axis=1, keepdims=True)}
    run = check_run(trainee, inputs, targets, batch_size=16)
    assert {"kind_accuracy", "kind_loss", "size_loss"} <= set(run.history)


class OwnStep(keras.Model):
    """A step of its own, with a loss that `compile` knows nothing of."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            scores = self(x, training=True)
            loss = tf.reduce_mean(
                keras.losses.sparse_categorical_crossentropy(
                    y, scores, from_logits=True
                )
            )
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        # Under the name "loss" Keras reports its own tracker, which nobody updates.
        return {"own_loss": loss}


def test_custom_train_step():
    inputs = keras.Input((6,))
    trainee = OwnStep(inputs, LAYER.Dense(3)(inputs))
    check_run(compiled(trainee), *table(), batch_size=16, loss="own_loss")


class TwoOptimizers(keras.Model):
    """Trains with optimizers that `compile` knows nothing of, as a GAN does."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.own = keras.optimizers.SGD(0.1)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.own.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


def test_an_optimizer_that_the_model_does_not_use_is_told():
    inputs = keras.Input((6,))
    trainee = compiled(TwoOptimizers(inputs, LAYER.Dense(3)(inputs)))
    trainee.own.build(trainee.trainable_variables)
    callback = LearnedLearningRate(validation_data=table())
    with pytest.warns(UserWarning, match="made no update in this epoch"):
        trainee.fit(*table(), batch_size=16, callbacks=[callback], verbose=0)


class Penalised(keras.layers.Layer):
    """Adds a loss of its own, as a variational layer does."""

    def __init__(self):
        super().__init__()
        self.dense = LAYER.Dense(8, "relu")

    def call(self, x):
        hidden = self.dense(x)
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(hidden)))
        return hidden


def test_add_loss():
    trainee = keras.Sequential([keras.Input((6,)), Penalised(), LAYER.Dense(3)])
    check_run(compiled(trainee), *table(), batch_size=16)


class OnlyAddLoss(keras.Model):
    """Compiled without a loss: all there is comes from `add_loss`."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = LAYER.Dense(3), LAYER.Dense(6)

    def call(self, x):
        rebuilt = self.decoder(self.encoder(x))
        self.add_loss(keras.ops.mean(keras.ops.square(rebuilt - x)))
        return rebuilt


@pytest.mark.parametrize("validated", [False, True])
def test_add_loss_and_no_other(validated):
    trainee = OnlyAddLoss()
    trainee.compile(keras.optimizers.Adam(0.01), jit_compile=False)
    x, _ = table()
    options = {"told": [] if validated else ["no `validation_data`"]}
    given = (x,) if validated else None
    check_run(trainee, x, validation_data=given, batch_size=16, **options)


def test_shared_layers():
    x, _ = table()
    shared = keras.Sequential([LAYER.Dense(8, "relu"), LAYER.Dense(4)])
    left, right = keras.Input((6,)), keras.Input((6,))
    distance = LAYER.Dot(axes=1)([shared(left), shared(right)])
    trainee = compiled(keras.Model([left, right], distance), "mse")
    target = np.sum(x * x[::-1], axis=1, keepdims=True)
    check_run(trainee, [x, x[::-1]], target, batch_size=16)


def test_frozen_layers():
    frozen = LAYER.Dense(8, "relu", trainable=False)
    norm = LAYER.BatchNormalization(trainable=False)
    trainee = keras.Sequential([keras.Input((6,)), frozen, norm, LAYER.Dense(3)])
    kept = [np.array(w) for layer in (frozen, norm) for w in layer.get_weights()]
    check_run(compiled(trainee), *table(), batch_size=16)
    now = [w for layer in (frozen, norm) for w in layer.get_weights()]
    assert all(map(np.array_equal, kept, now))


def test_nested_models_with_batch_norm_and_dropout():
    inner = keras.Sequential([LAYER.Dense(16), LAYER.BatchNormalization()])
    body = [keras.Input((6,)), inner, LAYER.ReLU(), LAYER.Dropout(0.2, seed=1)]
    trainee = compiled(keras.Sequential([*body, LAYER.Dense(3)]))
    check_run(trainee, *table(), batch_size=16)
    assert np.any(inner.layers[1].moving_mean.numpy() != 0)


@pytest.mark.parametrize("layer", [LAYER.LSTM, LAYER.GRU, LAYER.SimpleRNN])
def test_recurrent(layer):
    body = [keras.Input((5, 4)), LAYER.Bidirectional(layer(6)), LAYER.Dense(3)]
    check_run(compiled(keras.Sequential(body)), *sequences(), batch_size=16)


def test_stateful_recurrent_with_a_fixed_batch_size():
    """It takes batches of 16 only: not the 2 of a check, nor a remainder of 4."""
    x, y = sequences()
    body = [keras.Input(batch_shape=(16, 5, 4)), LAYER.LSTM(6, stateful=True)]
    trainee = compiled(keras.Sequential([*body, LAYER.Dense(3)]))
    state = trainee.layers[0].states[0]
    given = (x[:36], y[:36])
    check_run(trainee, x, y, validation_data=given, batch_size=16)
    assert np.any(state.numpy() != 0)


def test_a_fixed_batch_size_larger_than_what_is_looked_at():
    x, y = table(256)
    inputs = keras.Input((6,), batch_size=128)
    # Its graph knows the number of examples.
    outputs = LAYER.Dense(3)(keras.ops.reshape(inputs, [128, 6]))
    trainee = compiled(keras.Model(inputs, outputs))
    check_run(trainee, x, y, validation_data=(x[:50], y[:50]), batch_size=128)


def test_attention():
    inputs = keras.Input((5, 4))
    seen = LAYER.MultiHeadAttention(2, 3)(inputs, inputs)
    pooled = LAYER.GlobalAveragePooling1D()(LAYER.LayerNormalization()(inputs + seen))
    trainee = keras.Model(inputs, LAYER.Dense(3)(pooled))
    check_run(compiled(trainee), *sequences(), batch_size=16, epochs=6)
