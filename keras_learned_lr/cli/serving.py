"""Commands for a controller behind TensorFlow Serving: `export` and `serve-check`."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from keras_learned_lr.cli.apps import AsJson, app, one_line_errors
from keras_learned_lr.cli.members import Average, Controllers, Envelope, Lift, join


@app.command()
def export(
    controllers: Controllers,
    to: Annotated[
        Path, typer.Option(help="Folder of the served model, as `base/learned_lr`.")
    ],
    lift: Lift = None,
    envelope: Envelope = None,
    average: Average = None,
) -> None:
    """Write a controller as the next version of a model for TensorFlow Serving."""
    from keras_learned_lr.control.export import can_warm_up, export_version
    from keras_learned_lr.rehearsal import rehearse

    with one_line_errors(OSError):
        source, facts = join(controllers, lift, envelope, average)
        observations = rehearse(source).observations if can_warm_up() else None
        print(export_version(source, to, observations, facts))


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
