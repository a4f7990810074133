"""A real global ensemble: GloSea4 surface temperature, from package iris-sample-data.

PP files of the Met Office (Open Government Licence), read by NumPy: big-endian Fortran
records, a header of 45 integers and 19 floats and then a field, each between two copies
of its length. Words and codes as in Met Office Unified Model documentation paper F03.
"""

import importlib.util
import os
import pathlib
import re
from typing import NamedTuple

import numpy as np

from ensjax.emulate.archive import Archive

_HEADER = np.dtype([("integers", ">i4", 45), ("floats", ">f4", 19)])
_FOLDER = "sample_data/GloSea4"
_SURFACE_TEMPERATURE = 24  # the STASH code


class PPField(NamedTuple):
    """One field of a PP file.

    Attributes:
        values: `[row, column]`, float32; NaN is missing.
        lat: `[row]`, degrees north.
        lon: `[column]`, degrees east.
        start: beginning of the period that the field is about, datetime64.
        end: its end.
        lead_hours: from the start of the forecast to `end`.
        stash: code of the quantity.
    """

    values: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    start: np.datetime64
    end: np.datetime64
    lead_hours: int
    stash: int


def read_pp(path: str | os.PathLike) -> list[PPField]:
    """The fields of a PP file on regular latitudes and longitudes.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is cut off, or a field is packed, no float32, or on
            another grid than a regular one.
    """
    data = pathlib.Path(path).read_bytes()
    fields, place = [], 0
    while place < len(data):
        header, place = _record(data, place, path)
        field, place = _record(data, place, path)
        fields.append(_field(header, field, f"{path}, field {len(fields)}"))
    return fields


def _record(data, place, path):
    """The bytes between two copies of their number, and where the next record is."""
    is_there = place + 4 <= len(data)
    length = int(np.frombuffer(data, ">i4", 1, place)[0]) if is_there else 0
    end = place + 4 + length
    if length <= 0 or end + 4 > len(data):
        raise ValueError(f"{path} is cut off, or no PP file: at byte {place}.")
    if int(np.frombuffer(data, ">i4", 1, end)[0]) != length:
        raise ValueError(f"{path} is damaged: the record at byte {place} does not end.")
    return data[place + 4 : end], end + 4


def _field(header, data, where):
    if len(header) != _HEADER.itemsize:
        raise ValueError(f"{where}: the header has {len(header)} bytes, expected 256.")
    header = np.frombuffer(header, _HEADER)[0]
    # Numbered from 1, as the documentation does.
    word = dict(enumerate(header["integers"].tolist(), start=1))
    number = dict(enumerate(header["floats"].tolist(), start=46))
    if word[21] != 0 or word[39] != 1:
        raise ValueError(
            f"{where}: packed (LBPACK={word[21]}) or not of real numbers"
            f" (LBUSER1={word[39]}); only plain fields are read."
        )
    if word[16] != 1 or not number[60] or not number[62]:
        raise ValueError(
            f"{where}: on grid code LBCODE={word[16]}; only regular latitudes and"
            " longitudes are read."
        )
    rows, columns = word[18], word[19]
    if len(data) != 4 * rows * columns:
        raise ValueError(
            f"{where}: {len(data)} bytes do not hold {rows} x {columns} numbers."
        )
    values = np.frombuffer(data, ">f4").astype(np.float32).reshape(rows, columns)
    return PPField(
        values=np.where(values == np.float32(number[63]), np.nan, values),
        lat=number[59] + number[60] * np.arange(1, rows + 1),
        lon=number[61] + number[62] * np.arange(1, columns + 1),
        start=_time(word, 1),
        end=_time(word, 7),
        lead_hours=word[14],
        stash=word[42],
    )


def _time(word, first):
    year, month, day, hour, minute = (word[first + i] for i in range(5))
    return np.datetime64(f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}")


def glosea4_temperature() -> Archive:
    """Monthly mean surface temperature of the world, August 2011 to January 2012.

    A seasonal forecast of 13 members with lagged starts, 18 to 24 July 2011. There is
    one case, which is named after the last of the starts, and no truth. A lead goes
    from there to the beginning of the month.

    Returns:
        Values `[case 1, member 13, lead 6, variable 1, lat 145, lon 192]` in K, from
        south to north and from 0 to 358.125 degrees east. Members have the ids of
        their files; there is no member 6.

    Raises:
        ImportError: if iris-sample-data is not installed.
        ValueError: if its files are not as they were.
    """
    found = importlib.util.find_spec("iris_sample_data")
    if found is None:
        raise ImportError(
            "these data come with package iris-sample-data, which is not installed:"
            " pip install 'ensjax[weather]'"
        )
    folder = pathlib.Path(found.submodule_search_locations[0]) / _FOLDER
    files = sorted(folder.glob("ensemble_*.pp"))
    members = [read_pp(path) for path in files]
    if not members:
        raise ValueError(
            f"{folder} holds no ensemble_*.pp: this version of iris-sample-data does"
            " not ship them; 2.5 does."
        )
    first = members[0]
    for path, fields in zip(files, members):
        same = [field.start for field in fields] == [field.start for field in first]
        if not same or {field.stash for field in fields} != {_SURFACE_TEMPERATURE}:
            raise ValueError(
                f"{path} does not hold surface temperature of the months of {files[0]}."
            )
    # The header's own number of the member is 0 for the first four: the name has it.
    ids = [int(re.search(r"(\d+)\.pp$", path.name)[1]) for path in files]
    case = max(_member_start(fields[0]) for fields in members)
    starts = np.array([field.start for field in first])
    return Archive(
        np.stack([[field.values for field in fields] for fields in members])[
            None, :, :, None
        ],
        case=np.array([case]),
        member=ids,
        lead=(starts - case).astype("timedelta64[h]"),
        variable=["surface_temperature"],
        space={"lat": first[0].lat, "lon": first[0].lon},
        units={
            "surface_temperature": "K",
            "lat": "degrees_north",
            "lon": "degrees_east",
        },
        source="GloSea4 of the Met Office, by package iris-sample-data",
    )


def _member_start(field):
    return field.end - np.timedelta64(field.lead_hours, "h")
