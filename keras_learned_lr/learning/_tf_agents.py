"""The isolated import: the one place where TF-Agents meets tf_keras.

TF-Agents 0.19 is written for Keras 2 and says `tf.keras` wherever it means that.
Setting `TF_USE_LEGACY_KERAS` for the whole process would turn the user's own
`tf.keras` into Keras 2; swapping `tf.keras` for a moment only would leave networks
without trainable variables, which then "train" without an error. So TF-Agents is
given its own view of TensorFlow: while it is imported, `sys.modules` holds stand-ins
whose `keras` is tf_keras. TF-Agents keeps the stand-ins; everybody else gets
TensorFlow back as it was.

Every module of TF-Agents that this package ever uses is imported here, at once, and
is an attribute of this module: one imported later would miss the stand-ins.
"""

import contextlib
import importlib
import importlib.metadata
import os
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import tensorflow

# What TensorFlow 2 shows of Keras under its own name; TensorFlow 1 has others there.
_KERAS_NAMES = ("initializers", "losses", "metrics", "optimizers")
_VIEWS = (
    "tensorflow",
    "tensorflow.compat",
    "tensorflow.compat.v1",
    "tensorflow.compat.v2",
)
_SWITCH = "TF_USE_LEGACY_KERAS"


class _View(types.ModuleType):
    """A stand-in for a TensorFlow module that overrides a few attributes."""

    def __init__(self, module: types.ModuleType, **overrides: Any) -> None:
        super().__init__(module.__name__, module.__doc__)
        # The import system reads these from the instance.
        for name in ("__path__", "__spec__", "__file__", "__package__", "__loader__"):
            if hasattr(module, name):
                setattr(self, name, getattr(module, name))
        self.__dict__.update(overrides, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __dir__(self) -> list[str]:
        return sorted({*dir(self._module), *self.__dict__})


def _views(tf_keras: types.ModuleType) -> dict[str, types.ModuleType]:
    """Returns the stand-ins by module name."""
    keras_1 = importlib.import_module("tf_keras.api._v1.keras")
    same = {name: getattr(tf_keras, name) for name in _KERAS_NAMES}
    root, compat, v1, v2 = map(importlib.import_module, _VIEWS)
    v1 = _View(v1, keras=keras_1)
    v2 = _View(v2, keras=tf_keras, **same)
    compat = _View(compat, v1=v1, v2=v2)
    root = _View(root, keras=tf_keras, compat=compat, **same)
    return dict(zip(_VIEWS, (root, compat, v1, v2), strict=True))


@contextlib.contextmanager
def _isolated(tf_keras: types.ModuleType) -> Iterator[None]:
    """Holds the stand-ins in `sys.modules` for as long as the block runs."""
    views = _views(tf_keras)
    views["tensorflow.keras"] = tf_keras
    before = {name: sys.modules.get(name) for name in views}
    switch = os.environ.get(_SWITCH)
    sys.modules.update(views)
    os.environ[_SWITCH] = "1"
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
        if switch is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = switch


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Silences what the import of TF-Agents and of its old gym prints."""
    with contextlib.suppress(ImportError):
        # gym tells everyone on import that NumPy 2 is not for it.
        notices = importlib.import_module("gym_notices.notices").notices
        notices.clear()
    logger = tensorflow.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # tf_keras's own use of deprecated arguments
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def _explain(missing: ImportError) -> ImportError:
    message = (
        f"Training a controller needs TF-Agents, and {missing.name!r} could not be "
        'imported. Install it with: pip install "keras_learned_lr[train]"'
    )
    if sys.version_info >= (3, 12):
        message += (
            "\nand then: pip install --no-deps tf-agents==0.19.0\n"
            "(on Python 3.12 and later pip cannot install TF-Agents with its own pins: "
            "one of them, pygame 2.1.3, has no wheels there)"
        )
    return ImportError(message, name=missing.name)


def _import() -> dict[str, Any]:
    """Imports tf_keras, TFP and every module of TF-Agents that is ever used."""
    tf_keras = importlib.import_module("tf_keras")
    version = importlib.metadata.version("tensorflow-probability")
    # From 0.24 on TFP finds tf_keras by itself, as long as it sees Keras 3.
    finds_tf_keras = tuple(map(int, version.split(".")[:2])) >= (0, 24)

    def probability() -> types.ModuleType:
        module = importlib.import_module("tensorflow_probability")
        # These load lazily; touch them while the right TensorFlow is in place.
        for part in ("bijectors", "distributions", "layers", "math", "util"):
            dir(getattr(module, part))
        return module

    if finds_tf_keras:
        probability()
    with _isolated(tf_keras):
        found = {"tfp": probability(), "tf_keras": tf_keras}
        for path in _MODULES:
            found[path.rpartition(".")[2]] = importlib.import_module(path)
    return found


_MODULES = (
    "tf_agents.agents.ppo.ppo_clip_agent",
    "tf_agents.agents.reinforce.reinforce_agent",
    "tf_agents.drivers.dynamic_episode_driver",
    "tf_agents.drivers.dynamic_step_driver",
    "tf_agents.environments.py_environment",
    "tf_agents.environments.tf_environment",
    "tf_agents.environments.utils",
    "tf_agents.networks.actor_distribution_network",
    "tf_agents.networks.actor_distribution_rnn_network",
    "tf_agents.networks.network",
    "tf_agents.networks.value_network",
    "tf_agents.networks.value_rnn_network",
    "tf_agents.policies.policy_saver",
    "tf_agents.policies.tf_policy",
    "tf_agents.replay_buffers.tf_uniform_replay_buffer",
    "tf_agents.specs.array_spec",
    "tf_agents.specs.distribution_spec",
    "tf_agents.specs.tensor_spec",
    "tf_agents.trajectories.policy_step",
    "tf_agents.trajectories.time_step",
    "tf_agents.trajectories.trajectory",
    "tf_agents.utils.value_ops",
)

try:
    with _silenced():
        _found = _import()
except ImportError as error:
    raise _explain(error) from error

# TF-Agents compares with literals, and AutoGraph compiles that again at each trace.
warnings.filterwarnings(
    "ignore",
    message=r"\"is( not)?\" with",
    category=SyntaxWarning,
    module=r".*__autograph_generated_file",
)

tfp = _found["tfp"]
tf_keras = _found["tf_keras"]
ppo_clip_agent = _found["ppo_clip_agent"]
reinforce_agent = _found["reinforce_agent"]
dynamic_episode_driver = _found["dynamic_episode_driver"]
dynamic_step_driver = _found["dynamic_step_driver"]
py_environment = _found["py_environment"]
tf_environment = _found["tf_environment"]
environment_utils = _found["utils"]
actor_distribution_network = _found["actor_distribution_network"]
actor_distribution_rnn_network = _found["actor_distribution_rnn_network"]
network = _found["network"]
value_network = _found["value_network"]
value_rnn_network = _found["value_rnn_network"]
policy_saver = _found["policy_saver"]
tf_policy = _found["tf_policy"]
tf_uniform_replay_buffer = _found["tf_uniform_replay_buffer"]
array_spec = _found["array_spec"]
distribution_spec = _found["distribution_spec"]
tensor_spec = _found["tensor_spec"]
policy_step = _found["policy_step"]
time_step = _found["time_step"]
trajectory = _found["trajectory"]
value_ops = _found["value_ops"]
