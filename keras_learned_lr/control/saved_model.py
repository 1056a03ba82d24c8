"""Controllers from a SavedModel: those that ship, and those that users export."""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_learned_lr.control.actions import ActionForm
from keras_learned_lr.control.controller import PolicyOutput
from keras_learned_lr.control.export import FORMAT, FORMAT_VERSION
from keras_learned_lr.observation.features import ObservationSpec

PRETRAINED = Path(__file__).parent / "pretrained"


class SavedModelController:
    """A frozen controller, loaded with plain TensorFlow.

    A SavedModel is a program: load only what you trust.

    Args:
        path: The folder that `export_controller` wrote.

    Raises:
        ValueError: If there is no SavedModel, it is no controller, or it was made for
            another version of the observation or of the action form.

    Attributes:
        observation_spec: What it must be shown.
        action_form: What its actions mean, and when it decides.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not (path / "saved_model.pb").is_file():
            raise ValueError(
                f"There is no SavedModel at {str(path)!r}. Pass the folder that "
                "`learner.export(path)` wrote; it holds a `saved_model.pb`."
            )
        try:
            self._model = tf.saved_model.load(str(path))
            signatures = self._model.signatures
            told = signatures["describe"]()["json"].numpy()
            described = json.loads(told)
            if described.get("format") != FORMAT:
                raise KeyError("format")
            self._act = signatures["serving_default"]
        except Exception as error:
            raise ValueError(
                f"The SavedModel at {str(path)!r} is not a controller: it does not "
                "answer `describe` as one that `learner.export(path)` wrote. "
                f"({type(error).__name__}: {error})"
            ) from error
        if described["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"The controller at {str(path)!r} is of format version "
                f"{described['format_version']!r}; this keras_learned_lr reads "
                f"{FORMAT_VERSION}. It was made with keras_learned_lr "
                f"{described.get('made_with')!r}."
            )
        try:
            self.observation_spec = ObservationSpec.from_config(
                described["observation"]
            )
            self.action_form = ActionForm.from_config(described["action_form"])
            self._state_shapes = [tuple(shape) for shape in described["state_shapes"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"The controller at {str(path)!r} describes itself incompletely. "
                f"Received: {told!r}"
            ) from error
        self._check(path)

    def initial_state(self, batch_size: int) -> list[tf.Tensor]:
        """Returns zeros, one `[batch_size, ...]` tensor for each recurrent state."""
        return [tf.zeros([batch_size, *shape]) for shape in self._state_shapes]

    def act(self, observation: tf.Tensor, state: list[tf.Tensor]) -> PolicyOutput:
        """Answers observations of shape `[batch, features]`."""
        named = {f"state_{index}": value for index, value in enumerate(state)}
        answer = self._act(observation=observation, **named)
        return PolicyOutput(
            answer["action"], [answer[f"state_{i}"] for i in range(len(state))]
        )

    def _check(self, path: Path) -> None:
        features = len(self.observation_spec.names)
        try:
            output = self.act(tf.zeros([2, features]), self.initial_state(2))
            shapes = [tuple(value.shape) for value in output.state]
            right = tuple(output.action.shape) == (2,)
            right &= shapes == [(2, *shape) for shape in self._state_shapes]
            right &= bool(np.all(np.isfinite(output.action.numpy())))
        except Exception as error:
            raise ValueError(
                f"The controller at {str(path)!r} cannot be run on its own "
                f"{features} features: {error}"
            ) from error
        if not right:
            raise ValueError(
                f"The controller at {str(path)!r} answers in the wrong shape. "
                f"Received: action {tuple(output.action.shape)}, states {shapes}; "
                f"expected (2,) and {[(2, *s) for s in self._state_shapes]}."
            )


def shipped_controllers() -> list[str]:
    """Returns the names of the controllers that ship with this package."""
    return sorted(pb.parent.name for pb in PRETRAINED.glob("*/saved_model.pb"))


def load_controller(name_or_path: str | Path) -> SavedModelController:
    """Loads a controller that ships with the package, or one from a folder.

    Args:
        name_or_path: A name of `shipped_controllers()`, or a folder that
            `export_controller` wrote.

    Raises:
        ValueError: If it is neither.
    """
    shipped = shipped_controllers()
    if str(name_or_path) in shipped:
        return SavedModelController(PRETRAINED / str(name_or_path))
    if Path(name_or_path).exists():
        return SavedModelController(name_or_path)
    raise ValueError(
        f"Unknown controller: {str(name_or_path)!r}. It is neither one that ships "
        f"({', '.join(shipped) or 'none ships with this version yet'}) nor a folder. "
        "Train one with `keras_learned_lr.learning.ControllerLearner`, export it with "
        "`learner.export(path)`, and pass that path."
    )
