"""The scripts in `benchmarks/`, which nothing else imports."""

import math
import sys
from pathlib import Path

import pytest

from keras_learned_lr import LearnedLearningRate, load_controller


@pytest.fixture(name="fits")
def _fits(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import fits

    yield fits
    for name in ("fits", "fit_tasks"):
        sys.modules.pop(name)


def test_a_fit_trains_in_batches_and_by_its_seed(fits):
    task = fits.make_tasks()["cancer"]
    task = task._replace(steps=50)

    def final(seed, callbacks=()):
        return fits.losses(task, task.rate, seed, callbacks)

    first = final(1)
    assert first == final(1) and first != final(2)
    assert all(math.isfinite(loss) for loss in first)
    rate = LearnedLearningRate(
        fits.as_controller("default"),
        validation_data=task.data[1],
        validation_size=fits.shown_to("default"),
    )
    assert final(1, [rate])[1] < 0.6
    assert rate.decisions["step"][-1] < 50
    shipped = load_controller("default")
    assert shipped.observation_spec == rate.controller.observation_spec
