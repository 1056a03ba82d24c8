"""What the commands hang on, and where they print."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Annotated

# TensorFlow's start-up notices would drown what the commands print.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

try:
    import typer
    from rich.console import Console
except ImportError as error:
    sys.exit(
        f"keras-learned-lr needs {error.name}. Install it with "
        '`pip install "keras_learned_lr[cli]"`.'
    )

app = typer.Typer(
    help="A small neural network that sets the learning rate of a Keras model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
benchmark_app = typer.Typer(
    help="Measure whether it is any good.", no_args_is_help=True
)
app.add_typer(benchmark_app, name="benchmark")
console = Console()
# The option that commands with a table have in common.
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextlib.contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Tells what is wrong with what was asked for in a line, without a traceback.

    Args:
        kinds: Of errors, besides `ValueError`.
    """
    told: tuple[type[Exception], ...] = (ValueError, *kinds)
    try:
        yield
    except told as error:
        raise typer.BadParameter(str(error)) from error


def silence_retracing() -> None:
    """Silences warnings that count the graphs of all templates as retraces of one."""
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")
