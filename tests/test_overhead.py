"""What the benchmark of overhead counts; never what it times."""

import json

import numpy as np
import pytest
from helpers import GraphController, every
from typer.testing import CliRunner

from keras_learned_lr.benchmark import cost_front, decision_cost, overhead
from keras_learned_lr.benchmark.turns import run_in_turns
from keras_learned_lr.benchmark.workloads import TINY
from keras_learned_lr.cli import app


@pytest.mark.parametrize("jit", [False, True], ids=["", "jit"])
def test_decisions_synchronise_once_and_build_no_graph(jit):
    counts = decision_cost.count_in_fits(TINY, 40, jit_compile=jit)
    assert counts["decisions"] > 15
    assert counts["synchronisations"] == 1
    assert counts["idle_synchronisations"] == 0
    # Three looks, and a fourth that confirms what they tell.
    assert 3 <= counts["end_synchronisations"] <= 4
    assert counts["retraces"] == 0


def test_synchronisations_are_seen(monkeypatch):
    """The counter counts what the callback does not do."""
    hook = decision_cost.CountingLearningRate._decide

    def fetching(self):
        hook(self)
        float(self._loop.probe.step)
        self._loop.probe.step.numpy()

    monkeypatch.setattr(decision_cost.CountingLearningRate, "_decide", fetching)
    assert decision_cost.count_in_fits(TINY, 10, False)["synchronisations"] == 3


PARTS = ("statistics", "features", "policy", "keeping", "averaging", "python")


class TestMemory:
    def test_is_two_copies_of_the_weights_and_a_few_outputs(self):
        held = decision_cost.count_memory(TINY)
        copies = held["variables"] - 2 * held["trainable_weights"]
        # Losses and counters are left.
        assert copies == 32 * 10 * 4 + 1024 * 4 + 2 * 8
        assert held["validation"] == 128 * (8 * 4 + 8)
        # The weights and Adam's two moments of each, its step and learning rate.
        assert held["rollback"] == 3 * held["trainable_weights"] + 8 + 4
        assert held["average"] == held["trainable_weights"]

    def test_is_no_copy_where_no_feature_needs_one(self):
        controller = GraphController(0.0, ["training_vs_first"], every(2))
        held = decision_cost.count_memory(TINY, controller)
        assert held["variables"] == 1024 * 4 + 2 * 8


def test_two_fits_take_turns():
    taken = []

    def fit(name):
        def epochs(callbacks):
            for epoch in range(3):
                taken.append(name)
                for callback in callbacks:
                    callback.on_epoch_end(epoch)

        return epochs

    first, second = run_in_turns(fit("first"), fit("second"))
    assert taken == ["first", "second"] * 3
    assert len(first.seconds) == len(second.processor) == 3


def test_a_fit_that_fails_lets_the_other_one_end():
    taken = []

    def failing(callbacks):
        raise RuntimeError("out of memory")

    def fit(callbacks):
        for epoch in range(3):
            taken.append(epoch)
            callbacks[0].on_epoch_end(epoch)

    with pytest.raises(RuntimeError, match="out of memory"):
        run_in_turns(failing, fit)
    assert taken == [0, 1, 2]


def test_models_that_differ_more_than_their_turns_widen_the_error():
    one = overhead.Comparison(1.01, 1.02, 0.004, 20.0, 200.0, 400.0)
    alike = overhead.mean([one, one, one, one])
    assert alike == one._replace(error=0.002)
    apart = overhead.mean([one, one._replace(ratio=1.03)])
    assert apart.ratio == pytest.approx(1.02)
    assert apart.error == pytest.approx(0.01)


def test_the_front_is_what_nothing_beats():
    settings = [cost_front.DEFAULT._replace(decisions=n) for n in (8, 32, 48)]
    records = [
        {
            **setting._asdict(),
            **{"ratio": ratio, "far_ratio": 2.0, "lost": 0.0},
            "by_exam": {"a": ratio, "b": 1.0},
        }
        for setting, ratio in zip(settings, (1.2, 1.0, 1.1), strict=True)
    ]
    size = settings[0].validation_size
    records.append({"validation_size": size, "model": "m", "total": 5.0, "step": 10.0})
    points = cost_front.points(records, tuple(settings))
    assert [p["on_front"] for p in points] == [True, True, False]
    assert [p["ratio"] for p in points] == [1.2, 1.0, 1.1]
    assert [p["worst"] for p in points] == [1.2, 1.0, 1.1]
    assert points[0]["error"] == pytest.approx(np.log(1.2) / 2 / np.sqrt(2))
    assert points[1]["cost"] == pytest.approx(32 * 5.0 / (2000 * 10.0))


def test_the_front_marks_what_is_not_in_its_results_yet(tmp_path, monkeypatch):
    monkeypatch.setattr(cost_front, "HORIZONS", (40,))
    monkeypatch.setattr(cost_front, "TASKS", 2)
    monkeypatch.setattr(cost_front, "WORKLOADS", {"tiny": TINY})
    results = tmp_path / "results.jsonl"
    settings = (cost_front.DEFAULT, cost_front.Setting(4, 16))
    made = cost_front.run(results, settings, templates=["rings_adam"])
    assert [p["decisions"] for p in made] == [32, 4]
    assert made[0]["ratio"] != made[1]["ratio"] and made[0]["cost"] > made[1]["cost"]
    written = results.read_text()
    assert len(written.splitlines()) == 4
    # Looked at on the same tasks, but at fewer examples of them.
    fewer = cost_front.run(
        results, (*settings, cost_front.Setting(32, 16)), templates=["rings_adam"]
    )
    assert [p["ratio"] for p in fewer[:2]] == [p["ratio"] for p in made]
    assert fewer[2]["ratio"] != made[0]["ratio"]
    assert results.read_text().startswith(written)
    cost_front.draw(fewer, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_command_tells_all(monkeypatch):
    monkeypatch.setattr(overhead, "STEPS", (100, 150))
    command = ["benchmark", "overhead", "--rounds", "2", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    for name in ("cnn", "transformer"):
        assert report[f"{name}_100"] > 0 and report["processor"][f"{name}_150"] > 0
        assert len(report["by_round"][f"{name}_100"]) == 2
        assert len(report["by_round"][f"{name}_150"]) == 1
        assert report["counts"][name]["synchronisations"] == 1
        assert report["counts"][name]["retraces"] == 0
        parts = report["decision_ms"][name]
        assert parts["total"] > 0 and parts["step"] > 0
        assert set(PARTS) < set(parts)
    assert set(report["import_seconds"]) == {"keras", "keras_learned_lr"}
    assert set(report["tap"]) == {"us", "processor_us"}
