"""An image classifier whose learning rate a frozen controller sets.

    python examples/image_classifier.py my_controller --learning-rate 1e-5

`my_controller` is a folder that `learner.export` wrote, for instance that of
`train_a_controller.py`. Needs only the base install, and scikit-learn for the images.
"""

import argparse

import keras

from keras_learned_lr import LearnedLearningRate, plot_decisions
from keras_learned_lr.datasets import digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("controller", help="folder of an exported controller")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="any guess")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--picture", help="where to save the learning rate over steps")
    arguments = parser.parse_args()

    data = digits()
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(arguments.learning_rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    learned = LearnedLearningRate(
        arguments.controller, validation_data=data.validation, verbose=1
    )
    model.fit(
        *data.train,
        batch_size=32,
        epochs=arguments.epochs,
        callbacks=[learned],
        verbose=2,
    )
    loss, accuracy = model.evaluate(*data.test, verbose=0)
    print(f"test loss {loss:.3f}, test accuracy {accuracy:.1%}")
    if arguments.picture:
        plot_decisions(learned, arguments.picture)


if __name__ == "__main__":
    main()
