"""Where a controller's level is in `fit`, and which constant one would have been best.

    python benchmarks/levels.py > levels.jsonl

On the tasks of `fits.py`: seven constant levels, half a decade apart around a task's
learning rate, under a line from there to 0, and the controller that ships, which has
that line too, from the right learning rate and from a hundredth of it. Prints one JSON
line a task: validation and test losses of the constants; the controller's test losses,
and its levels in decades above the task's learning rate beside the progress of the run.
To read it: the level that has the lowest validation loss, what it would have had on the
test data, and how far from it the controller was at what time.
"""

import json
import warnings

import fits
import numpy as np
from fit_tasks import make_tasks
from keras.optimizers.schedules import PolynomialDecay

from keras_learned_lr import LearnedLearningRate
from keras_learned_lr.control.actions import linear_envelope

DECADES = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
MULTIPLES = (0.01, 1)
SEED = 1


def constant_levels(task):
    """Returns the validation and the test losses of constant levels under a line."""
    lines = [PolynomialDecay(task.rate * 10.0**d, task.steps, 0.0) for d in DECADES]
    return np.transpose([fits.losses(task, line, SEED) for line in lines]).tolist()


def learned_levels(task, multiple):
    """Returns the test loss under the controller, and its levels by progress."""
    callback = LearnedLearningRate(validation_data=task.data[1])
    _, test = fits.losses(task, multiple * task.rate, SEED, [callback])
    decisions = callback.decisions
    progress = decisions["step"] / task.steps
    level = (
        decisions["learning_rate"] / task.rate / np.asarray(linear_envelope(progress))
    )
    return {
        "test": test,
        "progress": np.round(progress, 3).tolist(),
        "level": np.round(np.log10(level), 2).tolist(),
    }


def main():
    """Runs all tasks."""
    warnings.simplefilter("ignore")
    for name, task in make_tasks().items():
        validation, test = constant_levels(task)
        row = {"task": name, "decades": DECADES, "validation": validation, "test": test}
        row["learned"] = {str(m): learned_levels(task, m) for m in MULTIPLES}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
