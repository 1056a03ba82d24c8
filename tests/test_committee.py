"""Controllers that decide together, in a run and in an export."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from helpers import MLPController, RecurrentController, every
from typer.testing import CliRunner

from keras_learned_lr import load_controller
from keras_learned_lr.cli import app
from keras_learned_lr.control.committee import Committee
from keras_learned_lr.control.export import export_version
from keras_learned_lr.rehearsal import rehearse


class Bold(MLPController):
    """Asks for far more than an action can be."""

    def act(self, observation, state):
        output = super().act(observation, state)
        return output._replace(action=output.action + 50.0)


def members():
    form = every(3)
    return [
        RecurrentController(form=form, seed=1),
        MLPController(form=form, seed=2),
        RecurrentController(form=form, seed=3),
    ]


def test_each_member_remembers_for_itself_and_all_count_the_same():
    alone, together = members(), Committee(members())
    states = [member.initial_state(4) for member in alone]
    state = together.initial_state(4)
    assert [s.shape for s in state] == [s.shape for own in states for s in own]
    features = len(together.observation_spec.names)
    rng = np.random.default_rng(0)
    for _ in range(3):
        seen = tf.constant(rng.normal(size=(4, features)).astype("float32"))
        actions = []
        for index, member in enumerate(alone):
            output = member.act(seen, states[index])
            actions.append(np.clip(output.action, -1, 1))
            states[index] = output.state
        answer = together.act(seen, state)
        state = answer.state
        np.testing.assert_allclose(answer.action, np.mean(actions, 0), rtol=1e-5)


def test_none_outvotes_the_others():
    controller = Committee([Bold(form=every(3)), MLPController(form=every(3), seed=2)])
    seen = tf.zeros((1, len(controller.observation_spec.names)))
    assert float(controller.act(seen, []).action[0]) == pytest.approx(0.5)


def test_members_see_and_do_the_same():
    with pytest.raises(ValueError, match="none"):
        Committee([])
    with pytest.raises(ValueError, match="action_form"):
        Committee([MLPController(form=every(3)), MLPController(form=every(4))])
    with pytest.raises(ValueError, match="observation_spec"):
        Committee([MLPController(), MLPController(names=("log_level", "progress"))])


def test_members_take_one_form_before_they_are_joined(tmp_path):
    folders = []
    for index, envelope in enumerate(("linear", "trapezoid")):
        form = dataclasses.replace(every(3), envelope=envelope)
        member = MLPController(form=form)
        folders.append(export_version(member, tmp_path / str(index), None, {}))
    arguments = ["export", *map(str, folders), "--to", str(tmp_path / "to")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and "share their action_form" in done.output
    done = CliRunner().invoke(app, [*arguments, "--envelope", "cosine"])
    assert done.exit_code == 0, done.output
    joined = load_controller(tmp_path / "to").action_form
    assert joined == dataclasses.replace(every(3), envelope="cosine")


def test_several_controllers_are_exported_as_one_that_a_fit_follows(tmp_path):
    folders = []
    for index, member in enumerate(members()):
        facts = {"tasks": ["a", f"b{index}"], "seeds": [index]}
        folders.append(export_version(member, tmp_path / str(index), None, facts))
    to = tmp_path / "together"
    done = CliRunner().invoke(app, ["export", *map(str, folders), "--to", str(to)])
    assert done.exit_code == 0, done.output
    card = json.loads((to / "1" / "model_card.json").read_text())["trained"]
    assert card["tasks"] == ["a", "b0", "b1", "b2"]
    assert card["seeds"] == {"members": [[0], [1], [2]]}
    for folder in folders:  # nothing of them is needed any more
        (folder / "saved_model.pb").unlink()
    runs = [rehearse(load_controller(to)), rehearse(Committee(members()))]
    actions = [run.decisions["action"] for run in runs]
    np.testing.assert_allclose(actions[0], actions[1], rtol=1e-4, atol=1e-5)
    assert np.ptp(actions[0]) > 0.01
