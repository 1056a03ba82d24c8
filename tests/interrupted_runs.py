"""Training runs in processes of their own, to be killed and started anew."""

import multiprocessing
import random
import signal
import time

import helpers
import keras
import numpy as np

from keras_learned_lr import LearnedLearningRate
from keras_learned_lr.control.actions import AnchoredScaleFactor
from keras_learned_lr.control.schedules import EverySteps
from keras_learned_lr.learning import ControllerLearner, LearnerConfig

# One at least for each thing that is kept from window to window.
FEATURES = (
    "log_level",
    "progress",
    "previous_action",
    "layer_variance",
    "input_mean",
    "training_trend",
    "training_peak",
    "validation_trend",
    "log_update_ratio",
    "update_cosine",
    "log_output_change",
)
EPOCHS = 5

# A process that has imported everything and run nothing is copied for each run.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["interrupted_runs"])


class TellEpochs(keras.callbacks.Callback):
    """Tells another process when an epoch begins."""

    def __init__(self, connection):
        super().__init__()
        self.connection = connection

    def on_epoch_begin(self, epoch, logs=None):
        self.connection.send(epoch)


def make_learner(network):
    """A learner that trains in mid-episode."""
    config = LearnerConfig(
        network=network,
        observation=FEATURES,
        # Windows go over the ends of epochs, which have 6 steps.
        action_form=AnchoredScaleFactor(schedule=EverySteps(4), average=0.2),
        hidden=(8,),
        lstm_size=4,
        passes=2,
        train_every=3,
        capacity=16,
    )
    return ControllerLearner(config)


def export(network, path):
    """Writes the untrained controller."""
    make_learner(network).export(path, observations=np.zeros([1, len(FEATURES)]))


def train(controller, backup, result, ours_first=False, connection=None):
    """Trains a small model and writes what was done.

    Args:
        controller: A folder, or the network of a learner.
        backup: The folder for backups, or None.
        result: The file to write.
        ours_first: Whether our callback is listed before Keras's.
        connection: Where to tell the epochs.
    """
    learner = make_learner(controller) if controller in ("mlp", "lstm") else None
    rate = LearnedLearningRate(
        learner or controller,
        validation_data=helpers.data(32, seed=1),
        designated_layer="first",
        probe_size=8,
        backup_dir=backup,
    )
    callbacks = [rate, TellEpochs(connection)]
    if backup is not None:
        of_keras = keras.callbacks.BackupAndRestore(
            backup, save_freq="epoch", double_checkpoint=True
        )
        callbacks.insert(1 if ours_first else 0, of_keras)
    optimizer = keras.optimizers.Adam(0.01)
    trainee = helpers.model(optimizer, dropout=True, batch_norm=True)
    helpers.fit(trainee, callbacks, epochs=EPOCHS)
    decisions = rate.decisions
    decisions |= {f"saw {k}": v for k, v in decisions.pop("observation").items()}
    if learner is not None:
        weights = learner.parts.actor.variables
        decisions |= {f"learned {i}": v.numpy() for i, v in enumerate(weights)}
    decisions |= {f"trained {i}": v for i, v in enumerate(trainee.get_weights())}
    decisions |= {"averaged": rate.averaged, "after": helpers.learning_rate(trainee)}
    np.savez(result, **decisions)


def in_process(function, *arguments):
    """Calls a function in a process of its own."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0, process.exitcode


class Run:
    """Training in a process of its own.

    Args:
        *arguments: Of `train`.
    """

    def __init__(self, *arguments):
        self.epochs, theirs = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=train, args=(*arguments, theirs))
        self.process.start()
        theirs.close()

    def wait_for_epoch(self, count=1):
        """Waits until so many epochs have begun; False if it ended before."""
        try:
            for _ in range(count):
                self.epochs.recv()
        except EOFError:
            return False
        return True

    def kill(self):
        """Sends SIGKILL; says whether it came before the end."""
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    def finish(self):
        """Waits for the end."""
        self.process.join()
        assert self.process.exitcode == 0, self.process.exitcode


def whole(controller, result):
    """Trains without an interruption; returns what was done, and seconds an epoch."""
    run = Run(controller, None, result, False)
    # The first has everything traced, and does not count.
    run.wait_for_epoch(2)
    begun = time.monotonic()
    run.wait_for_epoch(EPOCHS - 2)
    seconds = (time.monotonic() - begun) / (EPOCHS - 2)
    run.finish()
    return np.load(result), seconds


def with_kills(controller, folder, kills, seed, seconds):
    """Trains, killed at random moments and started anew; returns what was done."""
    moments = random.Random(seed)
    backup, result = str(folder / "backup"), folder / "interrupted.npz"
    done = 0
    while done < kills and not result.exists():
        run = Run(controller, backup, result, moments.random() < 0.5)
        # Saving makes an epoch longer than it is without.
        if run.wait_for_epoch(moments.randint(1, 2)):
            time.sleep(moments.uniform(0, 2 * seconds))
        done += run.kill()
    if not result.exists():
        run = Run(controller, backup, result, moments.random() < 0.5)
        run.finish()
    return np.load(result), done
