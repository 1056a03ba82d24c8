"""The examples and the command line, run as a user runs them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*command):
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def controller(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example") / "controller"
    said = run(EXAMPLES / "train_a_controller.py", folder, "--episodes", 9)
    assert re.search(r"fit 8: from learning rate .* reward -?\d", said)
    assert f"Exported to {folder}" in said
    return folder


def test_the_image_classifier_learns_under_an_exported_controller(controller, tmp_path):
    picture = tmp_path / "rate.png"
    said = run(
        *(EXAMPLES / "image_classifier.py", controller, "--epochs", 3),
        *("--picture", picture),
    )
    assert "step 0: learning rate" in said
    accuracy = re.search(r"test accuracy (\d+\.\d)%", said)
    assert float(accuracy[1]) > 15.0  # ten classes
    assert picture.stat().st_size > 10_000


def test_the_demo_goes_the_whole_way(tmp_path):
    said = run(
        *("-m", "keras_learned_lr", "demo", "--episodes", 10, "--output", tmp_path)
    )
    assert "over the first fifth" in said
    assert said.count("constant") >= 2 and said.count("learned") >= 2
    assert list((tmp_path / "controller").rglob("saved_model.pb"))
    assert (tmp_path / "learning_rates.png").stat().st_size > 10_000


def test_the_learning_benchmark_keeps_what_it_has_run(tmp_path):
    results = tmp_path / "learning.jsonl"
    command = ("-m", "keras_learned_lr", "benchmark", "learning", "--json")
    options = ("--seeds", 1, "--episodes", 5, "--results", results)
    first = json.loads(run(*command, *options).splitlines()[-1])
    assert len(results.read_text().splitlines()) == 2
    again = json.loads(run(*command, *options).splitlines()[-1])
    assert again == first and again["seeds"][0]["seed"] == 0
    assert len(results.read_text().splitlines()) == 2
