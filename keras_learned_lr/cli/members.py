"""The controller that a command is told, which may be several that decide together."""

from typing import Annotated, Any

import typer

Controllers = Annotated[
    list[str],
    typer.Argument(
        help="Name of a shipped controller, or a folder, a checkpoint too; several "
        "decide together, by the mean of their actions."
    ),
]
Lift = Annotated[
    float | None,
    typer.Option(
        help="Decades that each of its decisions adds; see `ScaleFactor`. "
        "[default: as many as it adds now]"
    ),
]
Envelope = Annotated[
    str | None,
    typer.Option(
        help="How its learning rate is annealed: constant, cosine, linear, trapezoid "
        "or long_trapezoid. [default: as it is now]"
    ),
]

Average = Annotated[
    float | None,
    typer.Option(
        help="Share of a run over which its weights are averaged towards the end; see "
        "`ActionForm`. [default: as it is now]"
    ),
]


def join(
    controllers: list[str],
    lift: float | None,
    envelope: str | None,
    average: float | None,
) -> tuple[Any, dict[str, Any]]:
    """Returns the controller that several make, and what is known of their training.

    Args:
        controllers: See `Controllers`.
        lift: See `Lift`.
        envelope: See `Envelope`.
        average: See `Average`.

    Raises:
        ValueError: If one is not found, or they do not go together.
    """
    from keras_learned_lr.control.actions import changed
    from keras_learned_lr.control.committee import Committee
    from keras_learned_lr.control.model_card import joined_facts
    from keras_learned_lr.controllers import as_controller

    members: list[Any] = [as_controller(name) for name in controllers]
    told = [_training(n, m) for n, m in zip(controllers, members, strict=True)]
    how = (lift, envelope, average)
    if any(part is not None for part in how):
        for member in members:  # first: those of a committee must share their form
            member.action_form = changed(member.action_form, *how)
        for facts in told:
            if facts.get("scores"):
                facts["scores"] = {"before_the_change": facts["scores"]}
    source: Any = members[0] if len(members) == 1 else Committee(members)
    return source, joined_facts(told)


def _training(name: str, controller: Any) -> dict[str, Any]:
    """Returns what is known of how a controller was trained."""
    from keras_learned_lr.control.model_card import read_card
    from keras_learned_lr.control.saved_model import SavedModelController

    if isinstance(controller, SavedModelController):
        card = read_card(controller.path)
        return card["trained"] if card else {}
    from keras_learned_lr.learning.run_folder import trained

    return trained(name)
