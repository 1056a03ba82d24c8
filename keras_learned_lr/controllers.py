"""Whatever a user may pass as `controller`, turned into a Controller."""

import sys
from pathlib import Path
from typing import Any

from keras_learned_lr.control.controller import Controller
from keras_learned_lr.control.saved_model import load_controller


def as_controller(value: Any) -> Controller:
    """Returns the controller that `value` names, holds or is.

    Args:
        value: The name of a shipped controller; a folder written by
            `learner.export` or by TF-Agents' `PolicySaver`; a checkpoint of a learner,
            acting greedily, with neither lift nor envelope of its run; a TF-Agents
            `TFPolicy`; or a `Controller`, a `ControllerLearner` among them.

    Raises:
        ValueError: If a name or a folder holds no controller.
        TypeError: If `value` is of no known kind.
    """
    if isinstance(value, str | Path):
        if (Path(value) / "policy_specs.pbtxt").is_file():
            from keras_learned_lr.learning.policies import load_policy_saver

            return load_policy_saver(value)
        if (Path(value) / "learner.json").is_file():
            from keras_learned_lr.learning import ControllerLearner

            return ControllerLearner.load(value).greedy()
        return load_controller(value)
    if _is_tf_policy(value):
        from keras_learned_lr.learning.policies import PolicyController

        return PolicyController(value)
    if isinstance(value, Controller) and not isinstance(value, type):
        return value
    raise TypeError(
        "`controller` must be the name of a shipped controller, a path, a controller, "
        f"a TF-Agents policy or a ControllerLearner. Received: {value!r}"
    )


def _is_tf_policy(value: Any) -> bool:
    # Who holds a policy has imported tf_agents; whoever does not need not.
    module = sys.modules.get("tf_agents.policies.tf_policy")
    return module is not None and isinstance(value, module.TFPolicy)
