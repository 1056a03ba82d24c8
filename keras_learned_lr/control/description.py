"""What an exported controller says about itself, as JSON."""

import json
from typing import NamedTuple

from keras_learned_lr._version import __version__
from keras_learned_lr.control.actions import ActionForm
from keras_learned_lr.control.controller import Controller
from keras_learned_lr.observation.spec import ObservationSpec

FORMAT = "keras_learned_lr.controller"
FORMAT_VERSION = 1


class Description(NamedTuple):
    """Everything a client must know of a controller, apart from its weights.

    Attributes:
        observation_spec: What it must be shown.
        action_form: What its actions mean, and when it decides.
        state_shapes: Shape of each recurrent state without the batch dimension.
    """

    observation_spec: ObservationSpec
    action_form: ActionForm
    state_shapes: tuple[tuple[int, ...], ...]


def describe(controller: Controller) -> str:
    """Returns the JSON that an export of `controller` carries."""
    states = controller.initial_state(1)
    return json.dumps(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "made_with": __version__,
            "observation": controller.observation_spec.to_config(),
            "action_form": controller.action_form.to_config(),
            "state_shapes": [[int(size) for size in s.shape[1:]] for s in states],
        },
        sort_keys=True,
    )


def read_description(told: str | bytes, where: str) -> Description:
    """Reads what `describe` returned.

    Args:
        told: The JSON.
        where: The controller's place, for the messages.

    Raises:
        ValueError: If it is not the description of a controller, or of one made for
            another version of the format, the observation or the action form.
    """
    try:
        described = json.loads(told)
        if described.get("format") != FORMAT:
            raise KeyError("format")
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{where} is not a controller: it does not describe itself as one that "
            f"`learner.export(path)` wrote. Received: {_short(told)} "
            f"({type(error).__name__}: {error})"
        ) from error
    if described.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{where} is of format version {described.get('format_version')!r}; this "
            f"keras_learned_lr reads {FORMAT_VERSION}. It was made with "
            f"keras_learned_lr {described.get('made_with')!r}."
        )
    try:
        return Description(
            ObservationSpec.from_config(described["observation"]),
            ActionForm.from_config(described["action_form"]),
            tuple(tuple(map(int, shape)) for shape in described["state_shapes"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{where} describes itself incompletely. Received: {_short(told)}"
        ) from error


def _short(told: str | bytes) -> str:
    return repr(told[:1000])
