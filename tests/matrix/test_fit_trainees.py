"""The matrix: a trainee of every kind that the published system names."""

import keras
import numpy as np
import tensorflow as tf
from contract import check_run, classes_of, compiled, draws, sparse

LAYER = keras.layers
OPS = keras.ops


def pictures(examples=64, size=8):
    """Noise with a bright corner; which corner is the class."""
    rng = draws()
    kind = rng.integers(0, 4, examples)
    x = rng.normal(scale=0.3, size=(examples, size, size, 1)).astype("float32")
    for picture, corner in zip(x, kind, strict=True):
        row, column = divmod(int(corner), 2)
        picture[row * 4 :][:3, column * 4 :][:, :3] += 1.0
    return x, kind


def sentences(examples=64, length=6, words=12):
    """Tokens, 1 to 11, in rows of several lengths that are padded with 0."""
    rng = draws()
    tokens = rng.integers(1, words, (examples, length))
    tokens[np.arange(length) >= rng.integers(3, length + 1, (examples, 1))] = 0
    return tokens.astype("int32")


def test_image_classification():
    body = [
        keras.Input((8, 8, 1)),
        LAYER.Conv2D(6, 3, activation="relu"),
        LAYER.MaxPooling2D(2),
        LAYER.Flatten(),
        LAYER.Dense(4),
    ]
    trainee = compiled(keras.Sequential(body), metrics=["accuracy"])
    check_run(trainee, *pictures(), batch_size=16)


def triplet_loss(labels, vectors):
    """Every triplet of the batch (Schroff et al. 2015, eq. 1), margin 0.3."""
    labels = OPS.reshape(labels, [-1])
    distance = 2.0 - 2.0 * OPS.matmul(vectors, OPS.transpose(vectors))
    same = OPS.cast(labels[:, None] == labels[None], "float32")
    gap = distance[:, :, None] - distance[:, None, :] + 0.3
    valid = same[:, :, None] * (1.0 - same[:, None, :])
    return OPS.sum(valid * OPS.relu(gap)) / (OPS.sum(valid) + 1e-6)


def test_embedding():
    body = [
        keras.Input((8, 8, 1)),
        LAYER.Conv2D(6, 3, activation="relu"),
        LAYER.GlobalAveragePooling2D(),
        LAYER.Dense(4),
        LAYER.UnitNormalization(),
    ]
    trainee = compiled(keras.Sequential(body), triplet_loss)
    check_run(trainee, *pictures(), batch_size=16)


def test_detection_of_boxes_and_classes():
    x, corner = pictures()
    row, column = np.divmod(corner, 2)
    boxes = np.stack([row, column, row + 0.75, column + 0.75], axis=1) / 2.0
    inputs = keras.Input((8, 8, 1))
    hidden = LAYER.Conv2D(6, 3, strides=2, activation="relu")(inputs)
    hidden = LAYER.Flatten()(hidden)
    heads = {
        "boxes": LAYER.Dense(4, name="boxes")(hidden),
        "classes": LAYER.Dense(4, name="classes")(hidden),
    }
    trainee = compiled(
        keras.Model(inputs, heads),
        {"boxes": keras.losses.Huber(0.1), "classes": sparse()},
        loss_weights={"boxes": 5.0, "classes": 1.0},
    )
    targets = {"boxes": boxes.astype("float32"), "classes": corner}
    check_run(trainee, x, targets, batch_size=16)


def test_segmentation():
    x, _ = pictures()
    mask = (x[..., 0] > 0.6).astype("int32")
    inputs = keras.Input((8, 8, 1))
    fine = LAYER.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    coarse = LAYER.Conv2D(6, 3, strides=2, padding="same", activation="relu")(fine)
    joined = LAYER.Concatenate()([fine, LAYER.UpSampling2D()(coarse)])
    trainee = compiled(keras.Model(inputs, LAYER.Conv2D(2, 1)(joined)))
    check_run(trainee, x, mask, batch_size=16)


def test_text_classification():
    words = np.array(["bad", "poor", "good", "fine", "the", "film"])
    drawn = draws().integers(0, 6, (64, 5))
    x = np.array([" ".join(row) for row in words[drawn]])
    mood = (drawn == 2).sum(1) + (drawn == 3).sum(1)
    y = (mood > (drawn == 0).sum(1) + (drawn == 1).sum(1)).astype("int32")
    body = [
        keras.Input((), dtype="string"),
        LAYER.TextVectorization(vocabulary=words, output_sequence_length=5),
        LAYER.Embedding(8, 4, mask_zero=True),
        LAYER.GlobalAveragePooling1D(),
        LAYER.Dense(1),
    ]
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    trainee = compiled(keras.Sequential(body), loss)
    # Keras takes NumPy strings as objects.
    check_run(trainee, tf.constant(x), y, batch_size=16)


def test_click_through():
    """Ids of many values, a few numbers, and clicks that are rare."""
    rng = draws()
    ids = {name: rng.integers(0, size, 128) for name, size in (("ad", 20), ("site", 7))}
    numbers = rng.normal(size=(128, 3)).astype("float32")
    clicked = (numbers[:, 0] + 0.1 * ids["ad"] > 2.0).astype("float32")
    inputs = {name: keras.Input((), dtype="int32", name=name) for name in ids}
    vectors = [
        LAYER.Embedding(20, 4)(inputs["ad"]),
        LAYER.Embedding(7, 4)(inputs["site"]),
    ]
    inputs["numbers"] = keras.Input((3,), name="numbers")
    joined = LAYER.Concatenate()([*vectors, inputs["numbers"]])
    click = LAYER.Dense(1, "sigmoid")(LAYER.Dense(8, "relu")(joined))
    trainee = compiled(
        keras.Model(inputs, click), "binary_crossentropy", metrics=["AUC"]
    )
    check_run(trainee, {**ids, "numbers": numbers}, clicked, batch_size=32)


class TwoTowers(keras.Model):
    """Ratings as the product of what is known of user and film."""

    def __init__(self):
        super().__init__()
        weak = keras.regularizers.L2(1e-4)
        self.users = LAYER.Embedding(12, 4, embeddings_regularizer=weak)
        self.films = LAYER.Embedding(15, 4, embeddings_regularizer=weak)
        self.bias = LAYER.Dense(1)

    def call(self, pair):
        user, film = self.users(pair[:, 0]), self.films(pair[:, 1])
        return self.bias(OPS.sum(user * film, axis=1, keepdims=True))


def test_recommendation():
    rng = draws()
    pairs = np.stack([rng.integers(0, 12, 128), rng.integers(0, 15, 128)], axis=1)
    taste = rng.normal(size=12)[pairs[:, 0]] * rng.normal(size=15)[pairs[:, 1]]
    stars = np.clip(3.0 + taste, 1, 5).astype("float32")
    trainee = compiled(TwoTowers(), "mse", metrics=["mae"])
    check_run(trainee, pairs, stars, batch_size=32)


def test_sequence_to_sequence_translation():
    """Encoder, decoder with attention on it, teacher forcing, padding left out."""
    source = sentences()
    target = np.where(source > 0, 12 - source, 0)
    before = np.pad(target, [(0, 0), (1, 0)])[:, :-1]
    words, shifted = keras.Input((6,), dtype="int32"), keras.Input((6,), dtype="int32")
    vectors = LAYER.Embedding(12, 8, mask_zero=True)(words)
    encoded, state = LAYER.GRU(8, return_sequences=True, return_state=True)(vectors)
    decoded = LAYER.Embedding(12, 8)(shifted)
    decoded = LAYER.GRU(8, return_sequences=True)(decoded, initial_state=state)
    seen = LAYER.Attention()([decoded, encoded])
    scores = LAYER.Dense(12)(LAYER.Concatenate()([decoded, seen]))
    loss = keras.losses.SparseCategoricalCrossentropy(True, ignore_class=0)
    trainee = compiled(keras.Model([words, shifted], scores), loss)
    check_run(trainee, [source, before], target, batch_size=16)


def test_speech_recognition_with_ctc():
    """Frames in, letters out, nobody says which frame is which letter."""
    rng = draws()
    letters = rng.integers(1, 4, (48, 3))
    frames = np.repeat(np.eye(4, dtype="float32")[letters], 4, axis=1)
    frames += rng.normal(scale=0.1, size=frames.shape)
    body = [
        keras.Input((12, 4)),
        LAYER.Conv1D(8, 3, padding="same", activation="relu"),
        LAYER.Dense(4),
    ]
    trainee = compiled(keras.Sequential(body), keras.losses.CTC())
    check_run(trainee, frames.astype("float32"), letters, batch_size=16)


def test_keyword_spotting():
    """A tone in noise; the model computes its own spectrogram."""
    rng = draws()
    word = rng.integers(0, 3, 48)
    time = np.arange(256)
    wave = np.sin(time * np.array([0.2, 0.5, 1.0])[word][:, None])
    wave += rng.normal(scale=0.3, size=wave.shape)
    body = [
        keras.Input((256, 1)),
        LAYER.STFTSpectrogram(
            mode="log", frame_length=64, frame_step=32, fft_length=64
        ),
        LAYER.Conv1D(6, 3, activation="relu"),
        LAYER.GlobalMaxPooling1D(),
        LAYER.Dense(3),
    ]
    trainee = compiled(keras.Sequential(body))
    check_run(trainee, wave.astype("float32")[..., None], word, batch_size=16)


def test_language_understanding():
    """A transformer block on pairs of sentences: do they share their first word?"""
    first, second = sentences(96), sentences(96)[::-1]
    second[::2, 0] = first[::2, 0]
    same = (first[:, 0] == second[:, 0]).astype("int32")
    tokens = np.concatenate([first, second], axis=1)
    segments = np.repeat([[0, 1]], 6, axis=1) + np.zeros_like(tokens)
    words, parts = keras.Input((12,), dtype="int32"), keras.Input((12,), dtype="int32")
    hidden = LAYER.Embedding(12, 8)(words) + LAYER.Embedding(2, 8)(parts)
    mask = OPS.not_equal(words, 0)[:, None, :]
    seen = LAYER.MultiHeadAttention(2, 4)(hidden, hidden, attention_mask=mask)
    hidden = LAYER.LayerNormalization()(hidden + seen)
    hidden = LAYER.LayerNormalization()(hidden + LAYER.Dense(8, "gelu")(hidden))
    trainee = compiled(keras.Model([words, parts], LAYER.Dense(2)(hidden[:, 0])))
    check_run(trainee, [tokens, segments], same, batch_size=16)


def test_text_to_speech_as_spectrogram_regression():
    """Each letter sounds for three frames of five bands."""
    letters = draws().integers(0, 8, (64, 4))
    voice = draws(1).normal(size=(8, 5)).astype("float32")
    spectrogram = np.repeat(voice[letters], 3, axis=1)
    body = [
        keras.Input((4,), dtype="int32"),
        LAYER.Embedding(8, 8),
        LAYER.UpSampling1D(3),
        LAYER.Conv1D(8, 3, padding="same", activation="relu"),
        LAYER.Dense(5),
    ]
    trainee = compiled(keras.Sequential(body), "mae")
    check_run(trainee, letters, spectrogram, batch_size=16)


def test_health_prediction_from_a_table():
    """Columns of different scales, gaps among them, and few who are ill."""
    rng = draws()
    scales = np.array([1.0, 40.0, 0.01, 7.0])
    x = rng.normal(size=(128, 4)) * scales
    ill = (x[:, 0] + x[:, 1] / 40.0 > 1.5).astype("float32")
    gaps = rng.random(x.shape) < 0.1
    x = np.where(gaps, 0.0, x).astype("float32")
    normalise = LAYER.Normalization()
    normalise.adapt(x)
    values, missing = keras.Input((4,)), keras.Input((4,))
    joined = LAYER.Concatenate()([normalise(values), missing])
    hidden = LAYER.Dropout(0.1, seed=1)(LAYER.Dense(8, "relu")(joined))
    trainee = compiled(
        keras.Model([values, missing], LAYER.Dense(1, "sigmoid")(hidden)),
        "binary_crossentropy",
        metrics=["AUC"],
    )
    inputs = [x, gaps.astype("float32")]
    check_run(trainee, inputs, ill, class_weight={0: 1.0, 1: 4.0}, batch_size=32)


def test_agent_control_with_a_value_network():
    """Fitted Q iteration (Ernst et al. 2005): each round fits newer targets."""
    rng = draws()
    state = rng.uniform(-1, 1, (96, 2)).astype("float32")
    action = rng.integers(0, 2, 96)
    following = np.clip(state + 0.3 * (2 * action[:, None] - 1), -1, 1)
    reward = -np.abs(following).sum(axis=1)

    def loss_of_chosen(target, values):
        # A target for the action that was taken, NaN for the other.
        known = OPS.logical_not(OPS.isnan(target))
        error = OPS.where(known, OPS.where(known, target, 0.0) - values, 0.0)
        return OPS.sum(OPS.square(error), axis=-1)

    body = [keras.Input((2,)), LAYER.Dense(16, "relu"), LAYER.Dense(2)]
    trainee = compiled(keras.Sequential(body), loss_of_chosen)
    callback = None
    # A tenth of the second round's first loss, which is small, is soon lost.
    for told in ([], ["The loss rose to"]):
        best = trainee.predict(following, verbose=0).max(axis=1)
        target = np.full((96, 2), np.nan, "float32")
        target[np.arange(96), action] = reward + 0.9 * best
        options = {"callback": callback, "batch_size": 32, "told": told}
        callback = check_run(trainee, state, target, **options).callback


class SemiSupervised(keras.Model):
    """Labelled and unlabelled examples in one step; noise must not matter."""

    def train_step(self, data):
        (labelled, unlabelled), y = data
        noise = tf.random.stateless_normal(tf.shape(unlabelled), [1, 2], 0.0, 0.3)
        with tf.GradientTape() as tape:
            loss = self.compute_loss(labelled, y, self(labelled, training=True))
            plain = tf.stop_gradient(self(unlabelled, training=True))
            noisy = self(unlabelled + noise, training=True)
            loss += 0.1 * tf.reduce_mean(tf.square(noisy - plain))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"total_loss": loss}


def test_semi_supervised_learning():
    x = draws().normal(size=(256, 6)).astype("float32")
    labelled, y = x[:64], classes_of(x[:64], 3)
    data = tf.data.Dataset.from_tensor_slices(((labelled, x[64:128]), y)).batch(16)
    inputs = keras.Input((6,))
    trainee = SemiSupervised(inputs, LAYER.Dense(3)(inputs))
    check_run(
        compiled(trainee),
        data,
        validation_data=(x[128:], classes_of(x[128:], 3)),
        loss="total_loss",
    )
