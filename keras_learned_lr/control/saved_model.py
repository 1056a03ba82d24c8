"""Controllers from a SavedModel: those that ship, and those that users export."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_learned_lr.control.controller import PolicyOutput
from keras_learned_lr.control.description import read_description
from keras_learned_lr.control.model_card import check_files
from keras_learned_lr.control.versions import latest_version

PRETRAINED = Path(__file__).parent / "pretrained"


class SavedModelController:
    """A frozen controller, loaded with plain TensorFlow.

    A SavedModel is a program: load only what you trust.

    Args:
        path: The folder that `learner.export` wrote, or one with versions of a
            controller, of which the latest is taken.

    Raises:
        ValueError: If there is no SavedModel, it is no controller, it was made for
            another version of the observation or of the action form, or its files
            are not those that its model card names.

    Attributes:
        path: The folder that was loaded.
        observation_spec: What it must be shown.
        action_form: What its actions mean, and when it decides.
        variables: What it computes with.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path = latest_version(Path(path))
        if not (path / "saved_model.pb").is_file():
            raise ValueError(
                f"There is no SavedModel at {str(path)!r}. Pass the folder that "
                "`learner.export(path)` wrote; it holds a `saved_model.pb`."
            )
        where = f"The SavedModel at {str(path)!r}"
        check_files(path)
        try:
            self._model = tf.saved_model.load(str(path))
            signatures = self._model.signatures
            self._act = signatures["serving_default"]
            told = tf.reshape(_ask(signatures["describe"])["json"], [-1])[0].numpy()
        except Exception as error:
            raise ValueError(
                f"The SavedModel at {str(path)!r} is not a controller: it does not "
                "answer `describe` as one that `learner.export(path)` wrote. "
                f"({type(error).__name__}: {error})"
            ) from error
        self.observation_spec, self.action_form, self._state_shapes = read_description(
            told, where
        )
        self.variables = list(self._act.variables)
        self._check(path)

    def __deepcopy__(self, memo: dict) -> "SavedModelController":
        # Nothing in it changes while it is used.
        return self

    def __reduce__(self) -> tuple:
        return type(self), (self.path,)

    def initial_state(self, batch_size: int) -> list[tf.Tensor]:
        """Returns the state before the first decision, each `[batch_size, ...]`."""
        if "initial_state" not in self._model.signatures:
            return [tf.zeros([batch_size, *shape]) for shape in self._state_shapes]
        told = _ask(self._model.signatures["initial_state"], batch_size)
        return [told[f"state_{index}"] for index in range(len(self._state_shapes))]

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


def _ask(signature: Any, batch_size: int = 1) -> dict[str, tf.Tensor]:
    """Calls a signature that looks at nothing but the size of its batch."""
    inputs = signature.structured_input_signature[1]
    return signature(**{name: tf.zeros([batch_size], tf.int32) for name in inputs})


def shipped_controllers() -> list[str]:
    """Returns the names of the controllers that ship with this package."""
    return sorted(
        folder.name
        for folder in PRETRAINED.glob("*")
        if (latest_version(folder) / "saved_model.pb").is_file()
    )


def load_controller(name_or_path: str | Path) -> SavedModelController:
    """Loads a controller that ships with the package, or one from a folder.

    Args:
        name_or_path: A name of `shipped_controllers()`, or a folder that
            `learner.export` wrote or was given; of several versions the latest is
            taken.

    Raises:
        ValueError: If it is neither.
    """
    shipped = shipped_controllers()
    if str(name_or_path) in shipped:
        return _load(PRETRAINED / str(name_or_path))
    if Path(name_or_path).exists():
        return _load(Path(name_or_path))
    raise ValueError(
        f"Unknown controller: {str(name_or_path)!r}. It is neither one that ships "
        f"({', '.join(shipped)}) nor a folder. "
        "Train one with `keras_learned_lr.learning.ControllerLearner`, export it with "
        "`learner.export(path)`, and pass that path."
    )


def _load(path: Path) -> SavedModelController:
    if not tf.distribute.has_strategy():
        return SavedModelController(path)
    # A strategy's scope would spread the variables over its replicas; it is one
    # thread's, and another's is outside of it.
    with ThreadPoolExecutor(1) as outside:
        return outside.submit(SavedModelController, path).result()
