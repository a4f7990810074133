"""Opening zarr and netCDF as they are, lazily, through xarray."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ensjax.emulate.gridded.layout import GriddedError
from ensjax.emulate.gridded.packages import optional_package
from ensjax.emulate.gridded.standard import standard_dataset

# An attribute of our zarrs: names of variables with spaces between.
VARIABLE_ORDER = "variable_order"
_NETCDF = (".nc", ".nc4", ".netcdf", ".h5", ".cdf")


def open_gridded(
    path: str | os.PathLike,
    mapping: Mapping[str, Any] | None = None,
    *,
    variables: Sequence[str] | None = None,
    report: Callable[[str], None] | None = print,
) -> Any:
    """A zarr or netCDF as a standard dataset; nothing but coordinates is read.

    Args:
        path: a folder or address of a zarr, or a netCDF file.
        mapping: names in the file by our words where a guess fails, as in
            `find_layout`, such as `{"time": "init", "lead_units": "hours"}`.
        variables: those to keep; by default all that lie on the grid.
        report: is told each guess in a line; None: nobody is.

    Returns:
        A dataset of xarray that reads when it is asked, as `standard_dataset` says.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        GriddedError: if it cannot be read, or its layout is unclear; names the file,
            and the variable or dimension.
        ImportError: if xarray, or the package of the format, is not installed.
    """
    dataset = open_raw(path)
    return standard_dataset(
        dataset, mapping, variables=variables, name=os.fspath(path), report=report
    )


def open_raw(path: str | os.PathLike) -> Any:
    """The dataset under the file's own names; see `open_gridded`."""
    xarray = optional_package("xarray")
    text = os.fspath(path)
    is_remote = "://" in text
    if not is_remote and not Path(text).exists():
        raise FileNotFoundError(f"there is no file or folder {text}.")
    is_netcdf = text.lower().endswith(_NETCDF) and not Path(text).is_dir()
    optional_package("h5netcdf" if is_netcdf else "zarr")
    if not is_netcdf and not is_remote and Path(text).is_file():
        with open(text, "rb") as file:
            start = file.read(4)
        is_netcdf = start in (b"\x89HDF", b"CDF\x01", b"CDF\x02", b"CDF\x05")
        if not is_netcdf and not text.lower().endswith(".zip"):
            raise GriddedError(
                f"{text} is no zarr (a folder) and no netCDF (by its first bytes)."
            )
    # Leads are decoded by `lead_durations`: xarray would also turn a variable in
    # hours, such as sunshine, into durations.
    options = dict(decode_timedelta=False, chunks=None, cache=False)
    try:
        if is_netcdf:
            engine = _netcdf_engine(text)
            return xarray.open_dataset(text, engine=engine, **options)
        with warnings.catch_warnings():
            # That metadata lie in several files is slower for many variables only.
            warnings.filterwarnings("ignore", "Failed to open Zarr store with consol")
            return _ordered(xarray.open_dataset(text, engine="zarr", **options))
    except (ValueError, OSError, KeyError, RuntimeError, OverflowError) as error:
        words = " ".join(str(error).split())[:300]
        raise GriddedError(f"{text} cannot be read: {words}") from error


def _ordered(dataset):
    """A zarr lists variables as the file system does: ours say their order."""
    names = sorted(map(str, dataset.data_vars))
    said = str(dataset.attrs.get(VARIABLE_ORDER, "")).split()
    first = [name for name in said if name in names]
    order = first + [name for name in names if name not in first]
    return dataset[order].assign_coords(dataset.coords)


def _netcdf_engine(path):
    with open(path, "rb") as file:
        is_hdf = file.read(4) == b"\x89HDF"
    return "h5netcdf" if is_hdf else "scipy"
