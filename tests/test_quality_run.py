"""The benchmark's runs: paired, resumed, tuned off the edge of their grid."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from helpers import MLPController, data, exported
from typer.testing import CliRunner

from keras_learned_lr.benchmark.quality import command, protocol, run
from keras_learned_lr.benchmark.quality.methods import METHODS
from keras_learned_lr.benchmark.quality.methods.method import Run
from keras_learned_lr.benchmark.quality.protocol import Plan, Protocol
from keras_learned_lr.benchmark.quality.report import markdown
from keras_learned_lr.benchmark.quality.results import KEY, Results
from keras_learned_lr.benchmark.quality.scores import score
from keras_learned_lr.benchmark.quality.task import Data, NotOnThisMachine, Task
from keras_learned_lr.benchmark.quality.tasks import TASKS
from keras_learned_lr.cli import app
from keras_learned_lr.control.saved_model import load_controller


def build():
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.Dropout(0.2), keras.layers.Dense(3, "softmax")]
    )


TINY = Task(
    "tiny",
    lambda: Data(data(64), data(32, seed=1), data(32, seed=2)),
    build,
    "sparse_categorical_crossentropy",
    keras.optimizers.SGD,
    learning_rate=0.1,
    steps=20,
    batch_size=16,
    accuracy=True,
)


def absent():
    raise NotOnThisMachine("needs tiny data: apt install tiny")


@pytest.fixture
def tiny(monkeypatch):
    known = {"tiny": TINY, "absent": dataclasses.replace(TINY, name="absent")}
    object.__setattr__(known["absent"], "load", absent)
    monkeypatch.setattr(protocol, "TASKS", known)
    monkeypatch.setattr(command, "TASKS", known)


def train(name="constant", seed=1, rate=0.1, **options):
    return run.train(METHODS[name], Run(TINY, rate, 20, **options), seed)


def test_a_seed_repeats_itself_whatever_was_run_before():
    first, other, again = train(seed=1), train(seed=2), train(seed=1)
    for record in (first, other, again):
        del record["seconds"]
    assert first == again
    assert first["test_loss"] != other["test_loss"]
    assert 0.0 <= first["accuracy"] <= 1.0
    assert len(first["curve"]) == len(first["rates"]) == run.EVALUATIONS


def test_methods_start_from_the_same_weights_and_see_the_same_examples():
    # At a learning rate of nothing only initial weights tell, and after one equal
    # epoch also what was seen.
    constant, step = train("constant"), train("step")
    assert constant["curve"][:9] == step["curve"][:9]
    assert constant["curve"] != step["curve"]


def test_a_diverged_run_is_recorded_and_cut_short():
    linear = dataclasses.replace(
        TINY,
        build=lambda: keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)]),
        loss="mean_squared_error",
        accuracy=False,
    )
    record = run.train(METHODS["constant"], Run(linear, 1e6, 20), 1)
    assert record["curve"][-1] is None and len(record["curve"]) < run.EVALUATIONS
    assert record["diverged"] and record["test_loss"] is None
    json.dumps(record, allow_nan=False)


def test_lines_survive_a_kill_and_other_writers(tmp_path):
    path = tmp_path / "runs.jsonl"
    lines = [{**dict.fromkeys(KEY), "seed": seed, "value": seed} for seed in range(3)]
    results = Results(path)
    results.add(lines[0])
    with path.open("a") as file:
        file.write('{"task": "cut o')
    results.add(lines[1])
    Results(path).add(lines[2])
    again = Results(path)
    assert len(again) == 3
    assert [again.get(line)["value"] for line in lines] == [0, 1, 2]
    path.write_text('{"kind": "something else"}\n')
    with pytest.raises(ValueError, match="something else than runs"):
        Results(path)


def test_a_controller_is_known_by_its_files(tmp_path):
    # By its name as by its folder, whatever version that holds.
    shipped = protocol.checksum("default")
    assert shipped == protocol.checksum(str(load_controller("default").path))
    others = [exported(tmp_path / str(i), MLPController(seed=i)) for i in (0, 1)]
    assert len({shipped, *(protocol.checksum(str(other)) for other in others)}) == 3


@pytest.mark.usefixtures("tiny")
def test_the_command_resumes_and_reports(tmp_path, monkeypatch):
    looks = MLPController(("progress", "validation_vs_first"))
    controller = exported(tmp_path / "controller", looks)
    results = tmp_path / "runs.jsonl"
    monkeypatch.setattr(protocol, "GRID", (-0.5, 0.0, 0.5))
    monkeypatch.setattr(protocol, "QUICK_TASKS", ("tiny", "absent"))
    monkeypatch.setattr(protocol, "QUICK_SWEEP", (0.0,))
    options = ["--quick", "--results", str(results), "--controller", str(controller)]
    options += ["--methods", "learned,replayed", "--json"]

    def invoke():
        done = CliRunner().invoke(app, ["benchmark", "quality", *options])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout), done.stderr

    report, told = invoke()
    runs = results.read_text().splitlines()
    assert "Skipped: absent needs tiny data" in told.replace("\n", " ")
    assert report["skipped"] == {"absent": "needs tiny data: apt install tiny"}
    scores = report["scores"]
    assert scores["cosine, best of 8"]["ratio"] == 1.0
    assert scores["learned, 1 run"]["runs"] == 2
    assert scores["replayed, 1 run"]["by_task"]["tiny"]["accuracy"] > 0

    # What was cut off is made again, and nothing else.
    results.write_text("\n".join(runs[:-2]) + "\n")
    again, told = invoke()
    assert again == report
    assert len(results.read_text().splitlines()) == len(runs)
    made = [line for line in told.splitlines() if line.startswith("tiny:")]
    assert len(made) == 2

    options += ["--report-only", "--report", str(tmp_path / "report")]
    assert invoke()[0] == report
    text = (tmp_path / "report" / "report.md").read_text()
    assert text == markdown(report) and "| learned, 1 run |" in text
    pictures = {path.stem for path in (tmp_path / "report").glob("*.png")}
    assert pictures == {
        *("initial_learning_rates", "learning_rates", "losses", "time_to_target")
    }


@pytest.mark.usefixtures("tiny")
def test_a_grid_grows_until_its_best_is_inside(monkeypatch):
    def landscape(_, made, seed):
        # The best is at 10^2.5 times the reference, beyond the grid.
        loss = 1.0 + abs(np.log10(made.learning_rate / 0.1) - 2.5)
        losses = dict.fromkeys(("training_loss", "validation_loss", "test_loss"), loss)
        return {**losses, "diverged": False, "curve": [loss] * 20, "accuracy": 0.5}

    monkeypatch.setattr(protocol, "train", landscape)
    begun = Protocol(Plan(("tiny",), ("constant",), seeds=2), Results())
    best = begun.tuned(begun.tasks[0], METHODS["constant"])
    assert best["log_multiplier"] == 2.5
    assert best["extended"] and best["runs"] == len(protocol.GRID) + 3
    begun.run()
    scores = score(begun)["scores"]
    # Far from it, at m = 1, the loss is 3.5 times as high.
    assert scores["constant, 1 run"]["ratio"] == pytest.approx(3.5)
    assert scores["constant, best of 8"]["ties"] == 2
    # Without grids rivals have their one run, and the measure is tuned all the same.
    untuned = Protocol(Plan(("tiny",), ("constant",), seeds=2, grids=False), Results())
    untuned.run()
    kept = score(untuned)["scores"]
    assert kept["constant, 1 run"] == scores["constant, 1 run"]
    assert "constant, best of 8" not in kept and "cosine, best of 8" in kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("nonesuch",)}, "Unknown tasks. Received: nonesuch. Known: fashion"),
        ({"methods": ("adam",)}, "Unknown methods. Received: adam. Known: cosine"),
        ({"seeds": 0}, "`seeds` must be positive. Received: 0"),
    ],
)
def test_a_wrong_plan_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        Plan(**options)


def test_there_are_fourteen_tasks_with_every_optimizer():
    optimizers = [task.optimizer(0.1) for task in TASKS.values()]
    assert len(optimizers) >= 14
    kinds = {type(optimizer).__name__ for optimizer in optimizers}
    assert kinds == {"SGD", "Adam", "AdamW", "RMSprop", "Adagrad"}
    sgd = [o for o in optimizers if type(o) is keras.optimizers.SGD]
    assert {(o.momentum > 0, o.nesterov) for o in sgd} == {
        *((False, False), (True, False), (True, True))
    }
    steps = [run.steps_of(task) for task in TASKS.values()]
    assert min(steps) == 300 and max(steps) == 10_000


@pytest.mark.parametrize(
    "name", ["diabetes_mlp", "packages_bag_of_words", "ratings_embeddings"]
)
def test_no_example_is_in_two_parts(name):
    parts = TASKS[name].data
    seen = [
        {np.append(a, b).tobytes() for a, b in zip(*part, strict=True)}
        for part in parts
    ]
    assert not seen[0] & seen[2] and not seen[1] & seen[2] and not seen[0] & seen[1]
