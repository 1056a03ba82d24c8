"""The command line, `keras-learned-lr`."""

# First, since it says what is missing where typer is.
from keras_learned_lr.cli.apps import app

# isort: split
from keras_learned_lr.cli import benchmarks, serving, training

__all__ = ["app", "benchmarks", "main", "serving", "training"]


def main() -> None:
    """Runs the command line."""
    app()
