"""Controllers in `fit`, on 26 tasks that are in no set: to choose by, not to score.

    python benchmarks/fits.py --seed 2 default meta_training/default/checkpoint-150

Each controller, the name of one that ships or a folder (that of a learner's checkpoint
too), starts from a hundredth, one and a hundred times a task's learning rate; its test
loss is divided by that of the best of five cosine schedules with warm-up, half a decade
apart, chosen on the validation data. Prints one JSON line a task. A seed fixes initial
weights and the order of the examples; the data stays. A learner is shown as many
validation examples as it was trained with, any other as many as the callback shows by
default.
"""

import argparse
import json
import warnings
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from fit_tasks import make_tasks

from keras_learned_lr import LearnedLearningRate
from keras_learned_lr.benchmark.quality.methods.schedules import cosine_schedule
from keras_learned_lr.callback import VALIDATION_SIZE
from keras_learned_lr.controllers import as_controller
from keras_learned_lr.learning.checkpoints import INDEX
from keras_learned_lr.learning.run_folder import CONFIG

# Fits are made of few, so that Python takes less of them.
STEPS_PER_EXECUTION = 5
EPOCHS = 5


def losses(task, rate, seed, callbacks=()):
    """Trains once; returns the validation loss and the test loss."""
    train, validation, test = task.data
    keras.utils.set_random_seed(seed)
    model = task.build()
    model.compile(
        task.optimizer(rate),
        task.loss,
        steps_per_execution=STEPS_PER_EXECUTION,
        jit_compile=False,
    )
    batches = tf.data.Dataset.from_tensor_slices(train).shuffle(
        len(train[0]), seed=seed
    )
    model.fit(
        batches.repeat().batch(task.batch_size),
        steps_per_epoch=task.steps // EPOCHS,
        epochs=EPOCHS,
        verbose=0,
        callbacks=list(callbacks),
    )
    return [
        model.evaluate(*part, batch_size=500, verbose=0) for part in (validation, test)
    ]


def shown_to(named):
    """Returns how many validation examples a controller is shown."""
    if not (Path(named) / INDEX).exists():
        return VALIDATION_SIZE
    return json.loads((Path(named).parent / CONFIG).read_text())["shown"]


def main(names, seed):
    """Compares the controllers of these names."""
    warnings.simplefilter("ignore")
    controllers = {name: (as_controller(name), shown_to(name)) for name in names}
    for name, task in make_tasks().items():
        rates = task.rate * 10.0 ** np.linspace(-1, 1, 5)
        schedules = [cosine_schedule(rate, task.steps, 0.05) for rate in rates]
        tried = [losses(task, schedule, seed) for schedule in schedules]
        best = int(np.nanargmin([validation for validation, _ in tried]))
        row = {"task": name, "seed": seed, "rate": rates[best]}
        row["cosine"] = tried[best][1]
        for controller, (found, shown) in controllers.items():
            row[controller] = []
            for multiple in (0.01, 1, 100):
                callback = LearnedLearningRate(
                    found, validation_data=task.data[1], validation_size=shown
                )
                final = losses(task, multiple * task.rate, seed, [callback])[1]
                row[controller].append(final / row["cosine"])
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+")
    parser.add_argument("--seed", type=int, default=1)
    main(**vars(parser.parse_args()))
