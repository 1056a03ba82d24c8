"""What it is worth to end a run with the average of its last weights.

    python benchmarks/averages.py --seed 1 > averages.jsonl

On the tasks of `fits.py`, each run once and looked at twice: with the weights after its
last step, and with what the callback leaves in their place. The controller that ships,
from a hundredth, one and a hundred times a task's learning rate; and a cosine without
warm-up that does the same at its end, five rates half a decade apart, the best chosen
on the validation data. Prints one JSON line a task: test losses, `[last, left]` each.
"""

import argparse
import json
import warnings

import fits
import keras
import numpy as np
import tensorflow as tf
from fit_tasks import make_tasks

from keras_learned_lr import AnchoredScaleFactor, LearnedLearningRate, ObservationSpec
from keras_learned_lr.control.controller import PolicyOutput
from keras_learned_lr.controllers import as_controller

MULTIPLES = (0.01, 1, 100)
DECADES = (-1.0, -0.5, 0.0, 0.5, 1.0)


class Cosine:
    """A controller that leaves its level where it is, under half a cosine."""

    observation_spec = ObservationSpec(["progress"])
    variables = ()

    def __init__(self, average):
        self.action_form = AnchoredScaleFactor(envelope="cosine", average=average)

    def initial_state(self, batch_size):
        """Returns no state."""
        return []

    def act(self, observation, state):
        """Returns no action."""
        return PolicyOutput(tf.zeros(tf.shape(observation)[:1]), [])


class Last(keras.callbacks.Callback):
    """Keeps the weights after the last step; to come before what replaces them."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.weights = None

    def on_train_batch_end(self, batch, logs=None):
        """Keeps them."""
        if int(self.model.optimizer.iterations) >= self.steps:
            self.weights = self.model.get_weights()


def both_ends(task, controller, rate, seed):
    """Trains once; returns the validation and test losses `[last, left]`."""
    callback = LearnedLearningRate(controller, validation_data=task.data[1])
    last = Last(task.steps // fits.EPOCHS * fits.EPOCHS)
    left = fits.losses(task, rate, seed, [last, callback])
    last.model.set_weights(last.weights)
    before = [
        last.model.evaluate(*part, batch_size=500, verbose=0) for part in task.data[1:]
    ]
    return [[one, other] for one, other in zip(before, left, strict=True)]


def main(seed):
    """Runs all tasks."""
    warnings.simplefilter("ignore")
    learned = as_controller("default")
    cosine = Cosine(learned.action_form.average)
    for name, task in make_tasks().items():
        row = {"task": name, "seed": seed, "learned": {}}
        for multiple in MULTIPLES:
            ends = both_ends(task, learned, multiple * task.rate, seed)
            row["learned"][str(multiple)] = ends[1]
        tried = [both_ends(task, cosine, task.rate * 10.0**d, seed) for d in DECADES]
        best = int(np.nanargmin([validation[0] for validation, _ in tried]))
        row["cosine"] = tried[best][1]
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    main(**vars(parser.parse_args()))
