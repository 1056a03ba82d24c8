"""The throughput benchmark runs and reports all that it promises."""

import json

import pytest
from typer.testing import CliRunner

from keras_learned_lr.benchmark import throughput
from keras_learned_lr.cli import app


@pytest.mark.slow
def test_every_number_is_there():
    command = ["benchmark", "throughput", "--seconds", "1", "--rounds", "1", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    names = ("mlp", "small_mlp", "gru", "attention", "small_cnn")
    for name in names:
        steps = report["steps"][name]
        # One round: its ratio is that of its two rates.
        expected = steps["trainees"] / steps["fit"]
        assert report[f"{name}_ratio"] == pytest.approx(expected)
    assert 0 < report["cnn_bound_share"]
    assert report["features_overhead"] > -1
    memory = report["memory"]
    assert memory["trainees"] == 128
    # Weights, two slots of Adam and the last update, float32.
    parameters = 2 * (64 * 64 + 64) + 64 * 10 + 10
    assert memory["state_bytes"] >= 128 * parameters * 4 * 4
    assert set(report["steps"]) == set(throughput.WORKLOADS)
    assert set(report["build_seconds"]) == set(throughput.WORKLOADS)
