"""Single numbers that a user passes, checked by their names."""

import operator
from typing import Any

import numpy as np


def integer(name: str, value: Any) -> int:
    """`value` as it is if it is an integer, and no bool; else raises `TypeError`."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer; got {value!r}.") from None


def number(name: str, value: Any) -> float:
    """`value` as a finite float; else raises `TypeError` or `ValueError`."""
    is_number = np.ndim(value) == 0 and np.issubdtype(
        np.asarray(value).dtype, np.number
    )
    if not is_number:
        raise TypeError(f"{name} must be a number; got {value!r}.")
    if not np.isfinite(value):
        raise ValueError(f"{name} must be finite; got {value}.")
    return float(value)
