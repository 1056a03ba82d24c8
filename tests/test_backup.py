"""What a kill leaves in the folder, and that a run goes on from it."""

import json
import shutil
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import RecurrentController, data, fit, learning_rate, model, rate

from keras_learned_lr import AnchoredScaleFactor
from keras_learned_lr.control.schedules import EverySteps, PerRun

WEIGHTS, METADATA = "latest.weights.h5", "training_metadata.json"
STATES = "learned_learning_rate"
NAMES = ("log_level", "validation_loss", "update_cosine", "output_variance_before")
EPOCHS = 5


class Interrupt(keras.callbacks.Callback):
    """Raises in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.epoch and batch == 3:
            raise KeyboardInterrupt


def callback(folder, schedule=None, **options):
    form = AnchoredScaleFactor(schedule=schedule or EverySteps(4))
    controller = RecurrentController(NAMES, form)
    return rate(controller, backup_dir=folder, **options)


def backup_of(folder, **options):
    return keras.callbacks.BackupAndRestore(folder, double_checkpoint=True, **options)


def start(ours, before=(), after=(), **options):
    """Fits a fresh model; returns decisions, history and what was told."""
    trainee = model(keras.optimizers.Adam(0.01), dropout=True)
    options = {"epochs": EPOCHS} | options
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = fit(trainee, [*before, ours, *after], **options).history
    told = [str(w.message) for w in caught if "LearnedLearningRate:" in str(w.message)]
    assert learning_rate(trainee) == pytest.approx(0.01)
    return ours.decisions, history, told


def same(decisions, expected):
    for name in ("step", "learning_rate", "factor", "action", "loss", "held"):
        np.testing.assert_allclose(
            decisions[name], expected[name], rtol=1e-6, err_msg=name
        )
    for name, values in expected["observation"].items():
        np.testing.assert_allclose(
            decisions["observation"][name], values, rtol=1e-6, err_msg=name
        )


@pytest.fixture(scope="module")
def expected():
    """The decisions of the run without an interruption."""
    return start(callback(None))[0]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The folder of a run that was interrupted in its fourth epoch, of index 3."""
    folder = tmp_path_factory.mktemp("interrupted") / "backup"
    with pytest.raises(KeyboardInterrupt):
        start(callback(folder), [backup_of(folder), Interrupt(3)])
    return folder


@pytest.fixture
def folder(interrupted, tmp_path):
    """A copy of it, which a test may spoil."""
    return shutil.copytree(interrupted, tmp_path / "backup")


def go_on(folder, ours_first=False):
    """Starts the interrupted run anew."""
    ours, keras_own = callback(folder), [backup_of(folder)]
    if ours_first:
        return start(ours, after=keras_own)
    return start(ours, before=keras_own)


def states(folder):
    return sorted(path.name for path in (folder / STATES).iterdir())


class TestGoesOn:
    @pytest.mark.parametrize("ours_first", [False, True])
    def test_whatever_the_order(self, folder, expected, ours_first):
        assert states(folder) == ["12-2", "18-3"]
        decisions, history, told = go_on(folder, ours_first)
        assert len(history["loss"]) == 2 and told == []
        same(decisions, expected)
        assert not folder.exists()

    def test_in_folders_apart(self, tmp_path, expected):
        keras_own = tmp_path / "keras"
        with pytest.raises(KeyboardInterrupt):
            start(callback(tmp_path), [backup_of(keras_own), Interrupt(2)])
        decisions, _, told = start(callback(tmp_path), [backup_of(keras_own)])
        same(decisions, expected)
        assert told == [] and list(tmp_path.iterdir()) == []

    def test_in_the_same_process_with_the_same_objects(self, tmp_path, expected):
        ours, keras_own = callback(tmp_path), backup_of(tmp_path)
        trainee = model(keras.optimizers.Adam(0.01), dropout=True)
        with pytest.raises(KeyboardInterrupt):
            fit(trainee, [keras_own, ours, Interrupt(3)], epochs=EPOCHS)
        fit(trainee, [keras_own, ours], epochs=EPOCHS)
        same(ours.decisions, expected)
        assert learning_rate(trainee) == pytest.approx(0.01)

    def test_where_only_the_end_was_left_to_do(self, tmp_path, expected):
        class AtTheEnd(keras.callbacks.Callback):
            def on_train_end(self, logs=None):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            start(callback(tmp_path), [AtTheEnd(), backup_of(tmp_path)])
        decisions, history, told = start(callback(tmp_path), [backup_of(tmp_path)])
        assert history == {} and told == []
        same(decisions, expected)

    def test_from_data_of_unknown_length(self, tmp_path):
        def dataset():
            known = tf.data.Dataset.from_tensor_slices(data()).batch(16)
            return known.filter(lambda x, y: True)

        def run(folder, others=()):
            ours = callback(folder, PerRun(7))
            return start(ours, others, x=dataset(), batch_size=None)

        whole = run(None)[0]
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, [backup_of(tmp_path), Interrupt(2)])
        # Keras counts one iteration more in a step that finds no data.
        assert {name.split("-")[1] for name in states(tmp_path)} == {"1", "2"}
        decisions, _, told = run(tmp_path, [backup_of(tmp_path)])
        same(decisions, whole)
        assert told == []

    def test_with_the_copies_of_rollback(self, tmp_path):
        class Poison(keras.callbacks.Callback):
            """Breaks the weights in the last epoch before the interruption."""

            def on_epoch_end(self, epoch, logs=None):
                if epoch == 2:
                    kernel = self.model.layers[-1].kernel
                    kernel.assign(tf.fill(kernel.shape, np.nan))

        def run(folder, others):
            # Long enough for a decision after the weights are back.
            ours = callback(folder, rollback=True)
            return start(ours, [Poison(), *others], epochs=6)

        whole, _, told = run(None, [])
        assert [t for t in told if "those of step 16 again" in t]
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, [backup_of(tmp_path), Interrupt(3)])
        decisions, _, told = run(tmp_path, [backup_of(tmp_path)])
        # The window of step 20 was noted as bad before the interruption in none.
        assert [t for t in told if "those of step 16 again" in t]
        same(decisions, whole)


class TestKilledWhileKerasWrote:
    def test_its_weights(self, folder, expected):
        whole = (folder / WEIGHTS).read_bytes()
        # As it is then: the copies made, the metadata not yet.
        (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
        shutil.copy(folder / f"{METADATA}.bkp", folder / METADATA)
        decisions, history, told = go_on(folder)
        assert len(history["loss"]) == 3
        assert len(told) == 1 and "goes back to the weights before" in told[0]
        same(decisions, expected)

    @pytest.mark.parametrize("ours_first", [False, True])
    def test_between_weights_and_metadata(self, folder, expected, ours_first):
        shutil.copy(folder / f"{METADATA}.bkp", folder / METADATA)
        decisions, history, told = go_on(folder, ours_first)
        assert len(told) == 1 and "between its weights" in told[0]
        if ours_first:
            # Too late to mend: an epoch is trained once more, and the run goes on.
            assert "List LearnedLearningRate after" in told[0]
            assert len(history["loss"]) == 3
        else:
            assert len(history["loss"]) == 2
            same(decisions, expected)

    @pytest.mark.parametrize("ours_first", [False, True])
    def test_its_metadata(self, folder, expected, ours_first):
        (folder / METADATA).write_text("")
        decisions, history, told = go_on(folder, ours_first)
        assert len(told) == 1 and "while it wrote" in told[0]
        assert len(history["loss"]) == 2
        same(decisions, expected)

    @pytest.mark.parametrize("ours_first", [False, True])
    def test_its_very_first_weights(self, folder, expected, ours_first):
        for name in (METADATA, f"{METADATA}.bkp", f"{WEIGHTS}.bkp"):
            (folder / name).unlink()
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])
        shutil.rmtree(folder / STATES)
        decisions, history, told = go_on(folder, ours_first)
        assert len(told) == 1 and "starts from the beginning" in told[0]
        assert len(history["loss"]) == EPOCHS
        same(decisions, expected)

    def test_its_only_weights(self, folder):
        """Keras cannot go on; what to do is said beside its error."""
        (folder / WEIGHTS).write_bytes(b"")
        (folder / f"{WEIGHTS}.bkp").unlink()
        with (
            pytest.warns(UserWarning, match="Delete the folder.*`double_checkpoint"),
            pytest.raises(OSError),
        ):
            fit(model(), [callback(folder), backup_of(folder)])

    def test_before_its_weights_and_after_our_state(self, folder, expected):
        """Both are of epoch 3; then Keras's are taken back to epoch 2."""
        for name in (WEIGHTS, METADATA):
            shutil.copy(folder / f"{name}.bkp", folder / name)
        decisions, history, told = go_on(folder)
        assert len(history["loss"]) == 3 and told == []
        same(decisions, expected)

    def test_or_deleted(self, folder):
        (folder / WEIGHTS).unlink()
        with pytest.warns(UserWarning, match="has no weights.*Delete the folder"):
            callback(folder).set_model(model())


class TestKilledWhileWeWrote:
    def test_a_state(self, folder, expected):
        half = folder / STATES / "unfinished"
        shutil.copytree(folder / STATES / "18-3", half)
        (half / "state.json").unlink()
        decisions, _, told = go_on(folder)
        same(decisions, expected)
        assert told == []

    def test_over_a_state_of_the_same_name(self, folder, expected):
        """As after a kill that came after our state and before Keras's weights."""
        for name in (WEIGHTS, METADATA):
            shutil.copy(folder / f"{name}.bkp", folder / name)
        (folder / STATES / "18-3").rename(folder / STATES / "18-3.old")
        decisions, _, told = go_on(folder)
        same(decisions, expected)
        assert told == []


class TestNoStateThatFits:
    def test_weights_of_the_middle_of_an_epoch(self, tmp_path, expected):
        keras_own = backup_of(tmp_path, save_freq=4)
        with pytest.raises(KeyboardInterrupt):
            start(callback(tmp_path), [keras_own, Interrupt(3)])
        keras_own = backup_of(tmp_path, save_freq=4)
        decisions, _, told = start(callback(tmp_path), [keras_own])
        assert len(told) == 1 and 'Use `BackupAndRestore(save_freq="epoch")`' in told[0]
        assert decisions["step"].tolist() == expected["step"].tolist()
        # Up to where the epoch began, it is the same run.
        np.testing.assert_allclose(
            decisions["learning_rate"][:5], expected["learning_rate"][:5], rtol=1e-6
        )

    def test_a_run_from_the_start_beside_the_states_of_another(self, folder, expected):
        decisions, history, told = start(callback(folder))
        assert len(told) == 1 and "iteration 0 and epoch 0" in told[0]
        assert "delete both backups" in told[0]
        same(decisions, expected)

    def test_states_lost(self, folder):
        shutil.rmtree(folder / STATES)
        trainee = model(keras.optimizers.Adam(0.01), dropout=True)
        ours = callback(folder)
        with pytest.warns(UserWarning, match="none of LearnedLearningRate's"):
            history = fit(trainee, [backup_of(folder), ours], epochs=EPOCHS).history
        assert len(history["loss"]) == 2
        assert ours.decisions["step"].tolist() == [0, 4, 8]
        # What was in force when it was interrupted is all there is to start from.
        assert learning_rate(trainee) < 0.01

    @pytest.mark.parametrize("spoil", ["unreadable", "other version", "no tensors"])
    def test_a_state_that_cannot_be_used(self, folder, spoil):
        for path in (folder / STATES).iterdir():
            index = path / "state.json"
            if spoil == "unreadable":
                index.write_text(index.read_text()[:50])
            elif spoil == "other version":
                index.write_text(
                    json.dumps(json.loads(index.read_text()) | {"version": 9})
                )
            else:
                (path / "tensors.index").unlink()
        ours, keras_own = callback(folder), backup_of(folder)
        trainee = model(keras.optimizers.Adam(0.01), dropout=True)
        with pytest.warns(UserWarning, match="(?s)cannot be used.*anew") as caught:
            history = fit(trainee, [keras_own, ours], epochs=EPOCHS).history
        assert len([w for w in caught if "cannot be used" in str(w.message)]) == 1
        assert len(history["loss"]) == 2
        assert ours.decisions["step"].tolist() == [0, 4, 8]

    def test_of_another_controller(self, folder):
        """It starts anew, and from what the optimizer was compiled with."""
        ours, keras_own = callback(folder, update_freq=5), backup_of(folder)
        trainee = model(keras.optimizers.Adam(0.01), dropout=True)
        with pytest.warns(UserWarning, match="run with another action form"):
            fit(trainee, [keras_own, ours], epochs=EPOCHS)
        assert ours.decisions["step"].tolist() == [0, 5, 10]


def test_a_finished_run_is_not_taken_for_an_unfinished_one(tmp_path):
    ours = callback(tmp_path)
    trainee = model(keras.optimizers.Adam(0.01))
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            fit(trainee, [backup_of(tmp_path), ours], epochs=2)
        assert ours.decisions["step"].tolist() == [0, 4, 8]
        assert not tmp_path.exists()


def test_a_folder_that_cannot_be_written_does_not_end_the_run(tmp_path, expected):
    file = tmp_path / "file"
    file.write_text("not a folder")
    decisions, _, told = start(callback(file / "inside"))
    assert len(told) == 1 and "could not be saved" in told[0]
    same(decisions, expected)


def test_bad_settings():
    with pytest.raises(ValueError, match="local folder. Received: 'gs://bucket'"):
        rate(backup_dir="gs://bucket")
    with pytest.raises(ValueError, match="local folder. Received: ''"):
        rate(backup_dir="")
    with pytest.raises(TypeError, match="must be a path. Received: 3"):
        rate(backup_dir=3)
