"""Whether two datasets give a variable in one unit, however they spell it."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ensjax.emulate.gridded.layout import GriddedError

_SPELLINGS = {
    word: unit
    for unit, words in {
        "K": "kelvin kelvins degk deg_k degree_k degree_kelvin degrees_kelvin",
        "degC": "degc deg_c c °c celsius degree_celsius degrees_celsius degree_c"
        " degrees_c",
        "degF": "degf deg_f f °f fahrenheit degree_fahrenheit degrees_fahrenheit",
        "m": "meter meters metre metres gpm",
        "km": "kilometer kilometers kilometre kilometres",
        "mm": "millimeter millimeters millimetre millimetres",
        "s": "sec secs second seconds",
        "min": "minute minutes",
        "hour": "h hr hrs hours",
        "day": "d days",
        "kg": "kilogram kilograms",
        "g": "gram grams",
        "mol": "mole moles",
        "hPa": "hpa hectopascal hectopascals mbar mb millibar millibars",
        "Pa": "pascal pascals",
        "J": "joule joules",
        "W": "watt watts",
        "N": "newton newtons",
        "%": "percent per_cent pct",
        "degree": "deg degrees ° degree_north degrees_north degree_east degrees_east",
        "rad": "radian radians",
    }.items()
    for word in words.split()
}
# Of the SI, so that numbers stay what they are.
_MADE_OF = {
    "N": {"kg": 1, "m": 1, "s": -2},
    "Pa": {"kg": 1, "m": -1, "s": -2},
    "J": {"kg": 1, "m": 2, "s": -2},
    "W": {"kg": 1, "m": 2, "s": -3},
    "Hz": {"s": -1},
}
# What says that a number has no unit, and what says nothing.
_ONES = ("1", "(0-1)", "0-1", "fraction", "dimensionless", "proportion")
_NOTHING = ("", "~", "-", "none", "unknown", "undefined", "n/a")
_TOKEN = re.compile(r"([/*·.]?)([A-Za-zµ°%_]+)(?:\^|\*\*)?([+-]?\d+)?|([/*·.]?)1(?!\d)")


def is_same_unit(first: str, second: str) -> bool:
    """Whether both spell one unit: `m2 s-2`, `m**2 s**-2`, `m2/s2` and `J kg-1`.

    Nothing is converted: hPa and Pa, K and degC are two. Where one says nothing ("",
    "~", "unknown") it cannot differ.
    """
    parts = [_parts(str(text)) for text in (first, second)]
    return None in parts or parts[0] == parts[1]


def check_units(
    variables: Iterable[str], first: Any, second: Any, names: tuple[str, str]
) -> None:
    """Raises `GriddedError` where two datasets give a variable in different units."""
    for variable in variables:
        ours, theirs = (
            str(ds[variable].attrs.get("units", "")) for ds in (first, second)
        )
        if not is_same_unit(ours, theirs):
            raise GriddedError(
                f"{names[0]} has {variable!r} in {ours!r}, {names[1]} in {theirs!r};"
                " their difference has no meaning. Convert one of them, or, if the"
                " attribute is wrong, say check_units=False (--ignore-units)."
            )


def _parts(text):
    """Base units with their powers; the text if unread; None: it says nothing."""
    plain = " ".join(text.split())
    if plain.lower() in _NOTHING:
        return None
    if plain.lower().replace(" ", "") in _ONES:
        return {}
    # "m s**-1", "m*s-1" and "m / s" with signs tight before what they are of.
    tight = re.sub(r"\s*(\*\*|\^)\s*", r"\1", plain)
    tight = re.sub(r"(?<!\*)\s*([/·])\s*", r" \1", tight)
    tight = re.sub(r"(?<!\*)\s*\*(?!\*)\s*", " *", tight)
    tight = re.sub(r"(?<=[A-Za-z\d])\.(?=[A-Za-z])", " ", tight)
    powers: Counter = Counter()
    for word in tight.split():
        token = _TOKEN.fullmatch(word)
        if token is None:  # a factor or brackets
            return plain
        if token[2] is None:
            continue
        power = int(token[3] or 1) * (-1 if token[1] == "/" else 1)
        unit = (
            _SPELLINGS.get(token[2].lower(), token[2])
            if _is_word(token[2])
            else token[2]
        )
        for base, own in _MADE_OF.get(unit, {unit: 1}).items():
            powers[base] += power * own
    return {unit: power for unit, power in powers.items() if power}


def _is_word(text):
    """Not one of the symbols whose case tells them apart, such as M, G and D."""
    return text not in ("M", "G", "D", "S", "MB", "Mb", "H")
