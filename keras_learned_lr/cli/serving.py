"""Commands for a controller behind TensorFlow Serving: `export` and `serve-check`."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from keras_learned_lr.cli.apps import AsJson, app, one_line_errors


@app.command()
def export(
    controllers: Annotated[
        list[str],
        typer.Argument(
            help="Name of a shipped controller, or a folder, a checkpoint too; several "
            "decide together, by the mean of their actions."
        ),
    ],
    to: Annotated[
        Path, typer.Option(help="Folder of the served model, as `base/learned_lr`.")
    ],
    lift: Annotated[
        float | None,
        typer.Option(
            help="Decades that each of its decisions adds; see `ScaleFactor`. "
            "[default: as many as it adds now]"
        ),
    ] = None,
    envelope: Annotated[
        str | None,
        typer.Option(
            help="How its learning rate is annealed: constant, cosine, linear or "
            "trapezoid. [default: as it is now]"
        ),
    ] = None,
) -> None:
    """Write a controller as the next version of a model for TensorFlow Serving."""
    from keras_learned_lr.control.actions import changed
    from keras_learned_lr.control.committee import Committee
    from keras_learned_lr.control.export import can_warm_up, export_version
    from keras_learned_lr.control.model_card import joined_facts
    from keras_learned_lr.controllers import as_controller
    from keras_learned_lr.rehearsal import rehearse

    with one_line_errors(OSError):
        members: list[Any] = [as_controller(name) for name in controllers]
        told = [_training(n, m) for n, m in zip(controllers, members, strict=True)]
        if lift is not None or envelope is not None:
            for member in members:  # first: those of a committee must share their form
                member.action_form = changed(member.action_form, lift, envelope)
            for facts in told:
                if facts.get("scores"):
                    facts["scores"] = {"before_the_change": facts["scores"]}
        source: Any = members[0] if len(members) == 1 else Committee(members)
        observations = rehearse(source).observations if can_warm_up() else None
        print(export_version(source, to, observations, joined_facts(told)))


def _training(name: str, controller: Any) -> dict[str, Any]:
    """Returns what is known of how a controller was trained."""
    from keras_learned_lr.control.model_card import read_card
    from keras_learned_lr.control.saved_model import SavedModelController

    if isinstance(controller, SavedModelController):
        card = read_card(controller.path)
        return card["trained"] if card else {}
    from keras_learned_lr.learning.run_folder import trained

    return trained(name)


@app.command("serve-check")
def serve_check(
    url: Annotated[
        str,
        typer.Argument(
            help="http(s)://HOST:8501/v1/models/NAME or grpc(s)://HOST:8500/NAME"
        ),
    ],
    version: Annotated[int | None, typer.Option(help="Ask for this version.")] = None,
    label: Annotated[str | None, typer.Option(help="Ask for this label.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for one decision.")] = 1.0,
    ca_file: Annotated[
        str | None, typer.Option(help="PEM file of the authorities to trust.")
    ] = None,
    authorization_variable: Annotated[
        str | None,
        typer.Option(help="Environment variable with the authorization header."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a running server: signature, spec, latency and a tiny fit."""
    from keras_learned_lr.serve_check import check

    headers = None
    if authorization_variable is not None:
        if authorization_variable not in os.environ:
            sys.exit(f"The environment has no variable {authorization_variable!r}.")
        headers = {"authorization": os.environ[authorization_variable]}
    checks = check(
        url,
        version=version,
        label=label,
        timeout=timeout,
        ca_file=ca_file,
        headers=headers,
    )
    if as_json:
        print(json.dumps([done._asdict() for done in checks]))
    else:
        for done in checks:
            print(f"{'ok    ' if done.passed else 'FAILED'} {done.name}: {done.found}")
    if not all(done.passed for done in checks):
        raise typer.Exit(1)
