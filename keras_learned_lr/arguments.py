"""Checks of what a user passes, before anything is done with it."""

import math
import numbers
from typing import Any


def check_count(name: str, value: Any) -> None:
    """Checks a number of steps or examples.

    Raises:
        ValueError: If it is no positive integer.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")


def check_update_freq(value: Any) -> None:
    """Checks how often decisions are made.

    Raises:
        ValueError: If it is neither "auto" nor a positive integer.
    """
    if isinstance(value, str):
        if value != "auto":
            raise ValueError(
                '`update_freq` must be "auto" or a positive number of steps. '
                f"Received: {value!r}"
            )
    else:
        check_count("update_freq", value)


def check_rates(default: Any, minimum: Any, maximum: Any) -> None:
    """Checks the learning rates that a callback is given, each of them or None.

    Raises:
        ValueError: If one is not positive and finite, or the bounds are crossed.
    """
    named = {
        "default_learning_rate": default,
        "min_learning_rate": minimum,
        "max_learning_rate": maximum,
    }
    for name, value in named.items():
        if value is None:
            continue
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not is_number or not 0 < float(value) < math.inf:
            raise ValueError(
                f"`{name}` must be positive and finite. Received: {value!r}"
            )
    if minimum is not None and maximum is not None and minimum > maximum:
        raise ValueError(
            "`min_learning_rate` must not exceed `max_learning_rate`. Received: "
            f"{minimum} > {maximum}"
        )
