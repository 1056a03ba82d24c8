"""Train a controller of your own inside `model.fit`, and export it.

    python examples/train_a_controller.py my_controller --episodes 200

Needs the extras `train` and `demo`.
"""

import argparse

import keras

from keras_learned_lr.datasets import digits
from keras_learned_lr.learning import ControllerLearner, LearnerConfig
from keras_learned_lr.learning.in_fit import learn_in_fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="where to write the controller")
    parser.add_argument("--episodes", type=int, default=200, help="how many fits")
    arguments = parser.parse_args()

    # The model that the controller learns on: take one like those it shall steer.
    data = digits()
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("sgd", "sparse_categorical_crossentropy")

    learner = ControllerLearner(LearnerConfig(algorithm="ppo", network="mlp"))
    x, y = data.train
    for episode in learn_in_fit(
        learner,
        model,
        x=x,
        y=y,
        batch_size=64,
        epochs=4,
        validation_data=data.validation,
        episodes=arguments.episodes,
        # Each fit starts somewhere in this range, so that the controller learns to
        # find its way from anywhere.
        learning_rates=(1e-3, 10.0),
    ):
        print(
            f"fit {episode.number}: from learning rate {episode.learning_rate:.2g} "
            f"to loss {episode.loss:.3f}, reward {episode.reward:.2f}"
        )

    print("Exported to", learner.export(arguments.folder))


if __name__ == "__main__":
    main()
