"""TF-Agents and the user's Keras 3 in one process; each case in its own process."""

import os
import subprocess
import sys

import pytest

LEARN = """
import numpy as np, os, sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=DeprecationWarning)
import tensorflow as tf
{before}
import keras_learned_lr
assert not any(name.startswith("tf_agents") for name in sys.modules)
from keras_learned_lr.learning import ControllerLearner, LearnerConfig
import keras
assert tf.keras.__version__ == keras.__version__ and keras.__version__[0] == "3"
assert tf.keras.layers.Dense is keras.layers.Dense
assert tf.optimizers.Adam is keras.optimizers.Adam
import tensorflow
assert tensorflow is tf and sys.modules["tensorflow.compat.v2"] is tf.compat.v2
assert os.environ.get("TF_USE_LEGACY_KERAS") == {switch!r}

from keras_learned_lr.control.controller import Decision
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile("adam", "mse")
weights = [w.copy() for w in model.get_weights()]
model.fit(np.ones((8, 3)), np.ones((8, 1)), verbose=0)
assert any((a != b).any() for a, b in zip(weights, model.get_weights()))

config = LearnerConfig(observation=("progress",), episodes_per_update=1, hidden=(4,))
learner = ControllerLearner(config)
assert len(learner.parts.actor.trainable_variables) == 4
assert len(learner.parts.critic.trainable_variables) == 4
before = [v.numpy() for v in learner.parts.actor.trainable_variables]
learner.begin_episode()
for step in range(4):
    seen = np.array([step / 4], np.float32)
    output = learner.act(seen[None], [])
    info = tf.nest.map_structure(lambda leaf: leaf[0].numpy(), output.info)
    action = float(output.action[0])
    decision = Decision(seen, action, info, 1.0 / (1 + step), 1.0, True)
    learner.record(decision) if step < 3 else learner.end_episode(decision)
after = learner.parts.actor.trainable_variables
assert all((a != b.numpy()).any() for a, b in zip(before, after))
model.fit(np.ones((8, 3)), np.ones((8, 1)), verbose=0)
print("done")
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("before", ["", "tf.keras.layers.Dense(1)"])
def test_both_keras_train_in_one_process(before):
    done = run(LEARN.format(before=before, switch=None))
    assert done.stdout.strip().endswith("done"), done.stderr


def test_the_environment_variable_is_restored():
    code = LEARN.format(before="", switch="0")
    done = run(code, TF_USE_LEGACY_KERAS="0")
    assert done.stdout.strip().endswith("done"), done.stderr


def test_a_missing_tf_agents_is_explained():
    code = """
import collections, sys
Version = collections.namedtuple("Version", "major minor micro level serial")
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tf_agents":
            # Only now: others ask for the version as well, and rely on it.
            sys.version_info = Version(VERSION, "final", 0)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import tensorflow as tf
import keras_learned_lr
try:
    import keras_learned_lr.learning
except ImportError as error:
    print(error)
import os
assert "TF_USE_LEGACY_KERAS" not in os.environ
assert sys.modules["tensorflow"] is tf and tf.keras.__version__[0] == "3"
"""
    done = run(code.replace("VERSION", "3, 11, 7"))
    assert 'pip install "keras_learned_lr[train]"' in done.stdout, done.stderr
    assert "--no-deps" not in done.stdout
    assert "Traceback" not in done.stderr
    done = run(code.replace("VERSION", "3, 12, 0"))
    assert "pip install --no-deps tf-agents==0.19.0" in done.stdout, done.stderr


def test_networks_without_variables_are_refused():
    # The failure itself: TF-Agents imported by somebody else, half in Keras 3, builds
    # networks that train without an error and without learning.
    code = """
import os
import tensorflow as tf
tf.keras.layers
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import tf_agents
from keras_learned_lr.learning import ControllerLearner
try:
    ControllerLearner()
except RuntimeError as error:
    print(error)
"""
    done = run(code)
    assert "each should have 6" in done.stdout, done.stderr
    assert "Import keras_learned_lr.learning first" in done.stdout
