"""What importing the package loads."""

import json

from helpers import run_python

HEAVY = ["tf_agents", "tensorflow_probability", "tf_keras", "matplotlib", "ray", "gym"]
CODE = """
import json, sys
import keras, tensorflow
before = set(sys.modules)  # Keras loads matplotlib where it is installed.
import keras_learned_lr
public = keras_learned_lr.__all__
assert all(hasattr(keras_learned_lr, name) for name in public)
loaded = [name for name in {heavy} if name in set(sys.modules) - before]
import tensorflow as tf
print(json.dumps([loaded, public, tf.keras.__version__]))
"""


def test_nothing_of_the_learning_stack():
    finished = run_python(CODE.format(heavy=HEAVY), TF_USE_LEGACY_KERAS="0")
    assert finished.returncode == 0, finished.stderr[-2000:]
    loaded, public, version = json.loads(finished.stdout.splitlines()[-1])
    assert loaded == []
    assert "LearnedLearningRate" in public
    assert version.startswith("3.")
