"""Writes a controller as a lean SavedModel that TensorFlow and its server load."""

import importlib.util
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_learned_lr.control.actions import ScaleFactor
from keras_learned_lr.control.controller import Exportable
from keras_learned_lr.control.description import describe
from keras_learned_lr.control.model_card import write_card
from keras_learned_lr.control.versions import write_version
from keras_learned_lr.control.warm_up import warm_up_requests, write_warm_up
from keras_learned_lr.files import finish_folder


class _ExportedController(tf.Module):
    """Only what acts: no optimizer, no critic, no class of an RL library."""

    def __init__(self, controller: Exportable) -> None:
        super().__init__()
        features = len(controller.observation_spec.names)
        first = controller.initial_state(1)
        states = [
            tf.TensorSpec([None, *state.shape[1:]], tf.float32, name=f"state_{index}")
            for index, state in enumerate(first)
        ]
        description = describe(controller)

        def act(observation: tf.Tensor, *state: tf.Tensor) -> dict[str, tf.Tensor]:
            output = controller.act(observation, list(state))
            action = tf.reshape(output.action, [-1])
            answer = {"action": action} | _factor(controller, observation, action)
            return answer | {f"state_{i}": s for i, s in enumerate(output.state)}

        def tell(batch: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"json": tf.fill(tf.shape(batch), description)}

        def begin(batch: tf.Tensor) -> dict[str, tf.Tensor]:
            return {
                f"state_{i}": tf.repeat(tf.constant(s.numpy()), tf.size(batch), axis=0)
                for i, s in enumerate(first)
            }

        observation = tf.TensorSpec([None, features], tf.float32, name="observation")
        # ModelServer's REST API refuses a signature without inputs, and its batching
        # one whose tensors do not all begin with the batch dimension.
        batch = tf.TensorSpec([None], tf.int32, name="batch")
        signatures: dict[str, tuple[Any, list[tf.TensorSpec]]] = {
            "serving_default": (act, [observation, *states]),
            "describe": (tell, [batch]),
        }
        if states:
            signatures["initial_state"] = (begin, [batch])
        self.signatures_to_save = {
            name: tf.function(function, input_signature=inputs, autograph=False)
            for name, (function, inputs) in signatures.items()
        }
        # A policy of TF-Agents names the variables of its critic among its own.
        acting = self.signatures_to_save["serving_default"].get_concrete_function()
        captured = {id(tensor) for tensor in acting.captured_inputs}
        self._tracked = [v for v in controller.variables if id(v.handle) in captured]


def export_controller(controller: Exportable, path: str | Path) -> Path:
    """Writes a SavedModel that maps observations to actions and nothing else.

    Its signatures, with a free batch size:

    - `serving_default` takes `observation`, float32 `[batch, features]`, and for a
      recurrent controller `state_0`, `state_1`, ..., float32 `[batch, ...]`. It returns
      `action`, float32 `[batch]`, unclipped; `factor`, float32 `[batch]`, what the
      action multiplies the level by before any clamp, where the observation tells
      enough to know it; and the new states under the same names.
    - `describe` takes `batch`, int32 `[batch]`, whose values do not matter, and returns
      `json`, the observation spec, the action form and the versions.
    - `initial_state`, for a recurrent controller, takes `batch` as well and returns the
      states before the first decision.

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
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        written = Path(folder) / "controller"
        _save(controller, written)
        finish_folder(written, path)
    return path


def export_version(
    controller: Exportable,
    folder: str | Path,
    observations: np.ndarray | None,
    facts: dict[str, Any] | None = None,
) -> Path:
    """Writes the next version of a served controller, `folder/<version>`.

    Beside what `export_controller` writes it holds a model card, and warm-up requests
    if there are observations and tensorflow-serving-api is installed.

    Args:
        controller: The controller, acting greedily.
        folder: The model's folder on the server; its name is the model's.
        observations: float32 `[decisions, features]`, of one run, in order: what the
            server is warmed up with. None for no warm-up requests.
        facts: For the model card, see `write_card`.

    Returns:
        The version's folder.

    Raises:
        ValueError: If `folder` is a file or itself a SavedModel.
    """
    folder = Path(folder)

    def write(written: Path, version: int) -> None:
        _save(controller, written)
        if observations is not None and can_warm_up():
            requests = warm_up_requests(controller, observations)
            write_warm_up(written, folder.resolve().name, requests)
        elif not can_warm_up():
            warnings.warn(
                "The export holds no warm-up requests, so that a server's first "
                "answers will be slow: tensorflow-serving-api is not installed. "
                'Install it with `pip install "keras_learned_lr[serving]"`.',
                stacklevel=4,
            )
        write_card(written, describe(controller), version, facts or {})

    return write_version(folder, write)


def can_warm_up() -> bool:
    """Whether the protos of warm-up requests are installed."""
    return importlib.util.find_spec("tensorflow_serving") is not None


def _save(controller: Exportable, path: Path) -> None:
    module = _ExportedController(controller)
    tf.saved_model.save(module, str(path), module.signatures_to_save)


def _factor(
    controller: Exportable, observation: tf.Tensor, action: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Returns what the action multiplies the level by, if the observation tells."""
    form = controller.action_form
    spec = controller.observation_spec
    seen = {
        name: observation[:, column] * scale
        for column, (name, scale) in enumerate(
            zip(spec.names, spec.scales, strict=True)
        )
    }
    ones = tf.ones_like(action)
    level, progress = ones, 0.0 * ones
    if not isinstance(form, ScaleFactor):
        if "log_level" not in seen:
            return {}
        level = 10.0 ** seen["log_level"]
    elif form.width.initial != form.width.final:
        if "progress" not in seen:
            return {}
        progress = 0.5 * (seen["progress"] + 1.0)
    state = form.initial_state(ones)._replace(
        level=level, low=0.0 * ones, high=float("inf") * ones
    )
    moved, _ = form.step(state, action, progress, ones)
    return {"factor": moved.level / level}
