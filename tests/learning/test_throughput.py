"""The throughput benchmark runs and reports all that it promises."""

import json

import pytest

from keras_learned_lr.benchmark import throughput


@pytest.mark.slow
def test_every_number_is_there():
    report = throughput.run(seconds=1.0, rounds=1)
    json.dumps(report)
    names = ("mlp", "gru", "attention", "small_cnn")
    assert all(report[f"{name}_ratio"] > 0 for name in names)
    assert 0 < report["cnn_bound_share"]
    assert report["features_overhead"] > -1
    assert report["memory"]["trainees"] == 128
    assert set(report["steps"]) == set(throughput.WORKLOADS)
