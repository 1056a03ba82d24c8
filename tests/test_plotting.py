import numpy as np
import pytest
from helpers import GraphController

from keras_learned_lr import LearnedLearningRate
from keras_learned_lr.plotting import plot_decisions, plot_runs

RUN = {
    "step": np.array([0, 10, 20]),
    "learning_rate": np.array([1e-3, 2e-3, 1e-4]),
    "loss": np.array([2.0, 1.0, 0.5]),
}


def test_a_picture_shows_every_run_on_logarithmic_axes(tmp_path):
    path = tmp_path / "runs.png"
    figure = plot_runs({"first": RUN, "second": RUN}, path)
    rates, losses = figure.axes
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log"]
    assert len(rates.lines) == len(losses.lines) == 2
    np.testing.assert_array_equal(rates.lines[0].get_ydata(), RUN["learning_rate"])
    np.testing.assert_array_equal(losses.lines[1].get_ydata(), RUN["loss"])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["first", "second"]
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_callback_without_decisions_cannot_be_drawn():
    with pytest.raises(ValueError, match="no decision yet"):
        plot_decisions(LearnedLearningRate(GraphController()))
