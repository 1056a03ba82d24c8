"""Writes a controller as a lean SavedModel that plain TensorFlow loads."""

import json
import shutil
import tempfile
from pathlib import Path

import tensorflow as tf

from keras_learned_lr._version import __version__
from keras_learned_lr.control.controller import Exportable

FORMAT = "keras_learned_lr.controller"
FORMAT_VERSION = 1


class _ExportedController(tf.Module):
    """Only what acts: no optimizer, no critic, no class of an RL library."""

    def __init__(self, controller: Exportable) -> None:
        super().__init__()
        self._tracked = list(controller.variables)
        features = len(controller.observation_spec.names)
        states = [
            tf.TensorSpec([None, *state.shape[1:]], tf.float32, name=f"state_{index}")
            for index, state in enumerate(controller.initial_state(1))
        ]
        description = json.dumps(
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "made_with": __version__,
                "observation": controller.observation_spec.to_config(),
                "action_form": controller.action_form.to_config(),
                "state_shapes": [list(spec.shape[1:]) for spec in states],
            },
            sort_keys=True,
        )

        def act(observation: tf.Tensor, *state: tf.Tensor) -> dict[str, tf.Tensor]:
            output = controller.act(observation, list(state))
            answer = {"action": tf.reshape(output.action, [-1])}
            answer |= {f"state_{i}": s for i, s in enumerate(output.state)}
            return answer

        observation = tf.TensorSpec([None, features], tf.float32, name="observation")
        self.signatures_to_save = {
            "serving_default": tf.function(
                act, input_signature=[observation, *states], autograph=False
            ),
            "describe": tf.function(
                lambda: {"json": tf.constant(description)},
                input_signature=[],
                autograph=False,
            ),
        }


def export_controller(controller: Exportable, path: str | Path) -> Path:
    """Writes a SavedModel with signatures `serving_default` and `describe`.

    `serving_default` takes `observation`, float32 `[batch, features]`, and for a
    recurrent controller `state_0`, `state_1`, ..., float32 `[batch, ...]`; it returns
    `action`, float32 `[batch]`, and the new states under the same names. `describe`
    returns observation spec, action form and versions as JSON.

    Args:
        controller: The controller, acting greedily.
        path: The folder to write. An earlier export there is replaced.

    Returns:
        The folder written.

    Raises:
        ValueError: If `path` exists and is not a SavedModel.
    """
    path = Path(path)
    if path.exists() and not (path / "saved_model.pb").is_file():
        if not path.is_dir() or any(path.iterdir()):
            raise ValueError(
                f"`path` exists and holds no SavedModel. Received: {path}. Choose a "
                "new folder for the controller."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    module = _ExportedController(controller)
    # Written beside and renamed: nobody loads half a controller.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        written = Path(folder) / "controller"
        tf.saved_model.save(module, str(written), module.signatures_to_save)
        if path.exists():
            shutil.rmtree(path)
        written.rename(path)
    return path
