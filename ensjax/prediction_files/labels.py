"""What rows and columns are called in a file, read and written alike."""

import numpy as np

OPTIONAL = ("lower", "upper", "scale")


def listed(rows):
    """What rows are called, in their order; a mask or a set says neither."""
    if isinstance(rows, (set, frozenset)):
        raise TypeError(
            "rows are called in an order; got a set. Give sorted(...) of it."
        )
    rows = list(rows)
    if any(isinstance(row, (bool, np.bool_)) for row in rows):
        raise TypeError(
            "rows are what they are called, such as row numbers; got a mask. The rows"
            " of a mask are np.flatnonzero(mask)."
        )
    return rows


def by_number(texts, otherwise):
    """Texts sorted by value if all are integers, else as `otherwise` lists them."""
    try:
        return sorted(texts, key=int)
    except ValueError:
        return otherwise(texts)
