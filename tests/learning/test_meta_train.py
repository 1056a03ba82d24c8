import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from typer.testing import CliRunner

from keras_learned_lr.benchmark import envelopes, meta_training
from keras_learned_lr.cli import app
from keras_learned_lr.control.actions import ENVELOPES
from keras_learned_lr.control.saved_model import load_controller
from keras_learned_lr.control.schedules import GeometricPerRun
from keras_learned_lr.learning import (
    ControllerLearner,
    MetaTrainConfig,
    MetaTraining,
    read_config,
)
from keras_learned_lr.learning.meta_config import SHIPPED
from keras_learned_lr.learning.run_folder import read_log

TINY = Path(__file__).with_name("tiny.toml")


def start(folder, *options):
    command = [sys.executable, "-m", "keras_learned_lr", "train", str(TINY)]
    command += ["--to", str(folder), "--threads", "1", *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def kill_when(process, condition):
    """Kills without a warning as soon as the condition holds."""
    deadline = time.monotonic() + 300
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[0]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def log(folder):
    file = folder / "log.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


def tensors(checkpoint):
    (index,) = checkpoint.glob("tensors-*.index")
    reader = tf.train.load_checkpoint(str(index.with_suffix("")))
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    }


def test_a_run_killed_three_times_ends_with_the_weights_of_one_that_was_not(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = start(whole)
    # Before there is a checkpoint, while one is written, and between two.
    kill_when(start(killed), lambda: len(log(killed)) >= 1)
    kill_when(
        start(killed, "--resume"),
        lambda: (killed / "checkpoint.new").exists(),
    )
    kill_when(start(killed, "--resume"), lambda: len(log(killed)) >= 5)
    output = finish(start(killed, "--resume"))
    assert "Exported" in output
    finish(uninterrupted)
    expected = tensors(whole / "checkpoint-6")
    found = tensors(killed / "checkpoint-6")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    drop = {"seconds"}
    assert [
        {k: v for k, v in record.items() if k not in drop} for record in log(killed)
    ] == [{k: v for k, v in record.items() if k not in drop} for record in log(whole)]
    controller = load_controller(killed / "controller")
    assert controller.action_form.schedule == GeometricPerRun(6)
    card = json.loads((controller.path / "model_card.json").read_text())
    assert card["trained"]["tasks"] == ["training/mixtures_sgd"]
    best = [r for r in log(killed) if r["round"] == card["trained"]["steps"]["rounds"]]
    assert card["trained"]["scores"]["validation"] == best[0]["validation"]
    assert list((killed / "tensorboard").iterdir())
    assert not list(killed.glob("*.new"))


@pytest.fixture
def config():
    return read_config(TINY)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path, config):
    MetaTraining(config, tmp_path)
    with pytest.raises(ValueError, match="--resume"):
        MetaTraining(config, tmp_path)


def test_a_run_that_is_not_there_is_not_resumed(tmp_path, config):
    with pytest.raises(ValueError, match="no run in"):
        MetaTraining(config, tmp_path / "typo", resume=True)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="Received a file"):
        MetaTraining(config, file)


def test_what_could_not_start_leaves_the_folder_free(tmp_path, config):
    with pytest.raises(ValueError, match="nothing"):
        MetaTraining(config, tmp_path, start=tmp_path / "nothing")
    MetaTraining(config, tmp_path)


def test_a_run_is_not_resumed_with_fewer_rounds_than_it_has(tmp_path, config):
    MetaTraining(dataclasses.replace(config, rounds=2), tmp_path).run()
    with pytest.raises(ValueError, match="2 rounds behind it"):
        MetaTraining(dataclasses.replace(config, rounds=1), tmp_path, resume=True)


def test_a_mean_of_weights_is_not_gone_on_from(tmp_path, config):
    MetaTraining(dataclasses.replace(config, rounds=2, averaged=(1, 2)), tmp_path)
    with pytest.raises(ValueError, match="another rounds"):
        longer = dataclasses.replace(config, rounds=3, averaged=(1, 2))
        MetaTraining(longer, tmp_path, resume=True)


def test_a_run_is_not_resumed_with_other_settings(tmp_path, config):
    MetaTraining(config, tmp_path)
    with pytest.raises(ValueError, match="another .*seed"):
        MetaTraining(config.with_seed(3), tmp_path, resume=True)


def test_a_run_from_before_a_setting_existed_is_resumed_without_it(tmp_path, config):
    MetaTraining(config, tmp_path)
    file = tmp_path / "config.json"
    saved = json.loads(file.read_text())
    assert saved.pop("lift") == 0.0
    file.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="another lift"):
        other = dataclasses.replace(config, lift=0.1)
        MetaTraining(other, tmp_path, resume=True)
    MetaTraining(config, tmp_path, resume=True)


def weights(run):
    parts = run.learner.parts
    return [v.numpy() for v in [*parts.actor.variables, *parts.critic.variables]]


def test_a_run_begins_with_what_another_learned(tmp_path, config):
    first = MetaTraining(dataclasses.replace(config, rounds=1), tmp_path / "first")
    first.run()
    checkpoint = tmp_path / "first" / "checkpoint-1"
    wider = dataclasses.replace(config.learner, hidden=(9,))
    with pytest.raises(ValueError, match="another hidden"):
        other = dataclasses.replace(config, learner=wider)
        MetaTraining(other, tmp_path / "wider", start=checkpoint)

    # Rounds of another size need another buffer, and no other weights.
    larger = dataclasses.replace(config, templates_per_round=2)
    second = MetaTraining(larger, tmp_path / "second", start=checkpoint)
    for begun, learned in zip(weights(second), weights(first), strict=True):
        np.testing.assert_array_equal(begun, learned)
    # Nor are they lost by a kill before the first checkpoint.
    again = MetaTraining(larger, tmp_path / "second", resume=True)
    for begun, learned in zip(weights(again), weights(first), strict=True):
        np.testing.assert_array_equal(begun, learned)


def test_weights_that_were_noted_are_averaged_at_the_end(tmp_path, config):
    config = dataclasses.replace(config, rounds=3)
    seen = []
    plain = MetaTraining(config, tmp_path / "plain")
    plain.run(lambda record: seen.append(weights(plain)))

    config = dataclasses.replace(config, averaged=(1, 3))

    def interrupt(record):
        if record["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MetaTraining(config, tmp_path / "averaged").run(interrupt)
    run = MetaTraining(config, tmp_path / "averaged", resume=True)
    assert run.progress.round == 2
    run.run()
    for mean, first, last in zip(weights(run), seen[0], seen[2], strict=True):
        np.testing.assert_allclose(mean, (first + last) / 2, rtol=1e-6, atol=1e-9)
    # What is saved, marked and exported is the mean.
    kept = ControllerLearner.load(tmp_path / "averaged" / "checkpoint-3")
    best = ControllerLearner.load(tmp_path / "averaged" / "best")
    for name, learner in (("checkpoint", kept), ("best", best)):
        for mean, saved in zip(
            run.learner.parts.actor.variables,
            learner.parts.actor.variables,
            strict=True,
        ):
            np.testing.assert_array_equal(mean, saved, err_msg=name)


def test_an_exported_checkpoint_tells_how_it_was_trained(tmp_path, config):
    config = dataclasses.replace(config, rounds=3, checkpoint_every=3).with_seed(4)
    MetaTraining(config, tmp_path / "run").run()
    checkpoint, alone = tmp_path / "run" / "checkpoint-3", tmp_path / "checkpoint-3"
    best = tmp_path / "run" / "best"
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"round": 4, "templates": ["training/sums_sgd"]}\n{"rou')
    shutil.copytree(checkpoint, alone)
    told = []
    for index, folder in enumerate((checkpoint, best, alone)):
        to = tmp_path / f"exported-{index}"
        done = CliRunner().invoke(app, ["export", str(folder), "--to", str(to)])
        assert done.exit_code == 0, done.output
        told.append(json.loads((to / "1" / "model_card.json").read_text())["trained"])
    state = json.loads((checkpoint / "state.json").read_text())
    record = read_log(tmp_path / "run", until=3)[-1]
    assert told[0]["tasks"] == ["training/mixtures_sgd"]
    assert told[0]["steps"]["rounds"] == 3
    assert told[0]["steps"]["trainee_steps"] == state["trainee_steps"] > 0
    assert told[0]["seeds"] == [4]
    assert told[0]["scores"] == {
        "validation": record["validation"],
        "finished": {"lift": config.lift, "envelope": config.envelope},
    }
    assert told[1]["scores"] == told[0]["scores"]
    assert not any(told[2].values())


@pytest.mark.parametrize(
    "changes", [{"lift": 0.2}, {"envelope": "linear"}, {"average": 0.2}]
)
def test_lift_envelope_and_average_are_for_the_finished_controller_alone(
    tmp_path, config, changes
):
    config = dataclasses.replace(config, rounds=2)
    plain = MetaTraining(config, tmp_path / "plain")
    changed = MetaTraining(dataclasses.replace(config, **changes), tmp_path / "changed")
    records = {}
    for run in (plain, changed):
        records[run] = []
        run.run(records[run].append)
    for learned, same in zip(weights(plain), weights(changed), strict=True):
        np.testing.assert_array_equal(learned, same)
    marks = [records[run][-1]["validation"]["ratio"] for run in (plain, changed)]
    # No exam averages weights.
    assert (marks[0] == marks[1]) == ("average" in changes)
    exported = load_controller(changed.export_best()).action_form
    assert exported == dataclasses.replace(config.learner.action_form, **changes)


def test_what_is_learned_from_does_not_change_the_exams(tmp_path, config):
    config = dataclasses.replace(config, evaluation_horizons=(100,))
    cosines = [
        MetaTraining(given, tmp_path / str(index)).exams[0].cosine
        for index, given in enumerate(
            [config, dataclasses.replace(config, fewest_rows=32, most_wrong=0.02)]
        )
    ]
    np.testing.assert_array_equal(*cosines)


def test_a_run_learns_and_reports_where_its_time_goes(tmp_path, config):
    run = MetaTraining(config, tmp_path)
    before = [v.numpy() for v in run.learner.parts.actor.trainable_variables]
    records = []
    progress = run.run(records.append)
    after = [v.numpy() for v in run.learner.parts.actor.trainable_variables]
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
    assert [r["round"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert ["validation" in r for r in records] == [False, False, True] * 2
    assert progress.best_ratio == min(
        r["validation"]["ratio"] for r in records if "validation" in r
    )
    # In the three rounds of imitation two searches take as many steps again each.
    horizon = progress.trainee_steps / 16 / 12
    assert ["imitation_cost" in r for r in records] == [True] * 3 + [False] * 3
    assert all(np.isfinite(r["imitation_cost"]) for r in records[:3])
    assert ["policy_loss" in r for r in records] == [False] * 3 + [True] * 3
    assert config.shortest_horizon <= horizon <= config.longest_horizon
    assert all(progress.seconds[name] > 0 for name in ("collect", "learn", "evaluate"))


def test_the_benchmark_marks_last_weights_beside_its_controls(tmp_path):
    results = tmp_path / "results.jsonl"
    report = meta_training.run(1, str(TINY), tmp_path / "runs", results)
    (row,) = report["seeds"]
    assert (tmp_path / "runs" / "tiny-0").is_dir()
    assert row["rounds"] == 6 and row["trainee_steps"] > 0
    ratios = [row[name]["ratio"] for name in ("trained", "open_loop", "untrained")]
    assert len(set(ratios)) == 3
    # What is in the file is not run again, unless the config says something else now.
    other = tmp_path / "tiny.toml"
    other.write_text(TINY.read_text().replace("rounds = 6", "rounds = 4", 1))
    assert meta_training.checksum(read_config(other)) != row["settings"]
    before = results.read_text()
    assert meta_training.run(1, str(TINY), tmp_path / "none", results) == report
    assert results.read_text() == before and not (tmp_path / "none").exists()


def test_the_envelopes_are_compared_at_their_best_levels(tmp_path):
    results = tmp_path / "results.jsonl"
    (row,) = envelopes.run(("mixtures_sgd",), (30,), results)
    ratios = row["ratios"]
    assert ratios.keys() == ENVELOPES.keys()
    assert ratios["cosine"] == 1.0
    assert 0.5 < ratios["trapezoid"] < 1.5 and ratios["trapezoid"] != 1.0
    assert envelopes.run(("mixtures_sgd",), (30,), results) == [row]


def keys(file):
    """The keys of a config file, each with whether a comment leads its block."""
    found, explained = {}, False
    for line in file.read_text().splitlines():
        if line.startswith("#"):
            explained = True
        elif not line or line.startswith("["):
            explained = False
        elif match := re.match(r"(\w+) = ", line):
            found[match[1]] = explained
    return found


def test_the_small_config_explains_every_key():
    unexplained = [k for k, told in keys(SHIPPED / "small.toml").items() if not told]
    assert not unexplained


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.toml")), ids=lambda f: f.stem)
def test_shipped_configs_have_no_key_that_is_not_explained(file):
    assert isinstance(read_config(file.stem), MetaTrainConfig)
    assert keys(file).keys() <= keys(SHIPPED / "small.toml").keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("round = 3", r"no setting \['round'\]"),
        ("[learner]\nlearning_rates = 1", r"no setting \['learning_rates'\]"),
        ('[learner.action_form]\nname = "Factor"', "Unknown setting"),
        ('training = ["mixtures"]', r"Unknown training tasks: \['training/mixtures'\]"),
        ("rounds = 0", "`rounds` must be an int of at least 1"),
        ("rounds = ", "not valid TOML"),
        ("shortest_horizon = 2000", "must not be below"),
        ('lift = "high"', "`lift` of MetaTrainConfig must be of type float"),
        ("seed = 1.5", "`seed` of MetaTrainConfig must be of type int"),
        ("seed = -1", "`seed` must be an int of at least 0"),
        ("decades = 0.0", "`decades` must be positive"),
        ("evaluation_horizons = []", "`evaluation_horizons` must be one number"),
        ("evaluation_horizons = [0]", "`evaluation_horizons` must be one number"),
        ('averaged = ["a"]', "must be of type list of int"),
        ("[learner]\nhidden = 64", "`hidden` of LearnerConfig must be of type list"),
        ("[learner]\ngradient_clipping = true", "must be of type float or NoneType"),
        ("[learner]\ncapacity = 3", "`learner.capacity` follows from"),
        ("[learner]\ntrain_every = 3", "`learner.train_every` follows from"),
        ('[learner.action_form]\nname = "ScaleFactor"\nwidth = 3', "of type Width"),
        (
            '[learner.action_form]\nname = "ScaleFactor"\nlift = 0.1',
            "not `learner.action_form.lift`",
        ),
        ("most_wrong = 1.5", "`most_wrong` must be at least 0.01"),
        ("fewest_rows = 0", "`fewest_rows` must be an int of at least 1"),
        ('baseline = "best"', "`baseline` must be one of"),
        ("lift = 2.0", "`lift` must be within 1 decade"),
        ('envelope = "sawtooth"', "Unknown envelope: 'sawtooth'"),
        ("average = 0.5", "`average` must be 0, or a share of the run"),
        (
            'lift = 0.1\n[learner.action_form]\nname = "LogLearningRate"',
            "Only a factor can be lifted",
        ),
    ],
)
def test_a_wrong_config_is_refused(tmp_path, text, message):
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(file)


def test_a_missing_config_names_those_that_ship():
    with pytest.raises(ValueError, match=r"small.*Received: 'smal'"):
        read_config("smal")


def test_a_config_survives_the_way_through_json():
    config = read_config(TINY)
    again = MetaTrainConfig.from_config(json.loads(json.dumps(config.to_config())))
    assert again == config
