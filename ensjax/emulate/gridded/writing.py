"""Writing forecasts and scores to zarr or netCDF: whole, or not at all.

Everything is written beside its place and renamed when it is complete. What is there
already is replaced only when that is asked for.
"""

import contextlib
import datetime
import errno
import importlib.metadata
import math
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ensjax.emulate.archive import Archive
from ensjax.emulate.gridded.conversion import archive_to_datasets, forecast_coordinates
from ensjax.emulate.gridded.layout import GriddedError
from ensjax.emulate.gridded.opening import VARIABLE_ORDER
from ensjax.emulate.gridded.packages import optional_package
from ensjax.emulate.gridded.standard import OWN_ATTRIBUTES
from ensjax.interop.output_folders import output_folder

_MARKS = ("zarr.json", ".zgroup")


def write_dataset(
    path: str | os.PathLike, dataset: Any, *, overwrite: bool = False
) -> None:
    """Writes a dataset of xarray as zarr or, where the path ends in .nc, as netCDF.

    Args:
        path: ends in .zarr or .nc.
        dataset: any; attributes that say how it was made are added.
        overwrite: replace what is there. A folder is replaced only if it is a zarr.

    Raises:
        GriddedError: if the place is taken or the path ends otherwise.
        OSError: if it cannot be written; what was there is left as it was.
    """
    dataset = dataset.assign_attrs(_made_now(dataset.attrs))
    for name in OWN_ATTRIBUTES:
        dataset.attrs.pop(name, None)
    with whole_output(path, overwrite=overwrite) as place:
        if place.suffix == ".nc":
            optional_package("h5netcdf")
            dataset.to_netcdf(place, engine="h5netcdf")
        else:
            zarr = optional_package("zarr")
            dataset.attrs[VARIABLE_ORDER] = " ".join(map(str, dataset.data_vars))
            dataset.to_zarr(place, mode="a", consolidated=False)
            _consolidate(zarr, place)


def write_forecast(
    path: str | os.PathLike,
    archive: Archive,
    *,
    overwrite: bool = False,
    attributes: Mapping[str, str] | None = None,
) -> None:
    """Writes the members of an archive with coordinates and the attributes of CF.

    Args:
        path: ends in .zarr or .nc. The truth is not written with them.
        archive: its variables are written separately, `[time, member, lead, *space]`.
        overwrite: replace what is there.
        attributes: more of the file, such as a title.

    Raises:
        GriddedError, OSError: as `write_dataset`.
    """
    forecast, _ = archive_to_datasets(archive)
    dataset = forecast.assign_attrs(attributes or {})
    write_dataset(path, dataset, overwrite=overwrite)


@contextlib.contextmanager
def forecast_writer(
    path: str | os.PathLike,
    *,
    case: np.ndarray,
    member: np.ndarray,
    lead: np.ndarray,
    variable: Sequence[str],
    space: Mapping[str, np.ndarray],
    units: Mapping[str, str] | None = None,
    overwrite: bool = False,
    attributes: Mapping[str, str] | None = None,
    member_chunk: int = 1,
) -> Iterator[Callable[..., None]]:
    """A file that members are written into block by block, there when all went well.

    Args:
        path: ends in .zarr or, through h5netcdf, in .nc.
        case, member, lead, variable, space, units: as of the `Archive` of everything.
        overwrite: replace what is there.
        attributes: more of the file.
        member_chunk: members in a chunk; a block should be a whole number of them.

    Yields:
        `write(values, case=..., member=...)`: values
        `[case, member, lead, variable, *space]` of the rows that the two slices say, by
        default all. What is never written is NaN.

    Raises:
        GriddedError: if the place is taken, the path ends otherwise, or values have
            another shape.

    Example:
        with forecast_writer("out.zarr", member=ids, ...) as write:
            for start in range(0, len(ids), 64):
                rows = slice(start, start + 64)
                write(sample(ids[rows]), member=rows)
    """
    named = {k: v for k, v in (units or {}).items() if k not in variable}
    coordinates = forecast_coordinates(
        case=case, member=member, lead=lead, space=space, units=named
    )
    start = "case" if "case" in coordinates.dims else "time"
    dims = (start, "member", "lead", *space)
    shape = tuple(coordinates.sizes[d] for d in dims)
    chunks = (1, min(member_chunk, shape[1]), *shape[2:])
    coordinates.attrs.update(_made_now(attributes or {}))
    about = {}
    for name in variable:
        unit = (units or {}).get(name)
        about[name] = {"long_name": name} | ({"units": unit} if unit else {})
    with whole_output(path, overwrite=overwrite) as place:
        opened = _open_netcdf if place.suffix == ".nc" else _open_zarr
        with opened(place, coordinates, about, dims, chunks) as arrays:

            def write(values, *, case=slice(None), member=slice(None)):
                values = np.asarray(values, np.float32)
                cases = len(range(*case.indices(shape[0])))
                members = len(range(*member.indices(shape[1])))
                wanted = (cases, members, shape[2], len(arrays), *shape[3:])
                if values.shape != wanted:
                    raise GriddedError(
                        f"{path}: values of these cases and members must be [case,"
                        f" member, lead, variable, *space] = {wanted}; got"
                        f" {values.shape}."
                    )
                for i, array in enumerate(arrays):
                    array[case, member] = values[:, :, :, i]

            yield write


@contextlib.contextmanager
def _open_zarr(place, coordinates, about, dims, chunks):
    """The variables of a new zarr, to be written into."""
    zarr = optional_package("zarr")
    coordinates.attrs[VARIABLE_ORDER] = " ".join(about)
    coordinates.to_zarr(place, mode="a", consolidated=False)
    group = zarr.open_group(place, mode="r+")
    arrays = []
    for name, attributes in about.items():
        array = group.create_array(
            name,
            shape=tuple(coordinates.sizes[d] for d in dims),
            chunks=chunks,
            dtype="float32",
            fill_value=np.nan,
            dimension_names=dims,
            attributes=attributes,
        )
        arrays.append(array)
    yield arrays
    _consolidate(zarr, place)


@contextlib.contextmanager
def _open_netcdf(place, coordinates, about, dims, chunks):
    """The variables of a new netCDF file, to be written into."""
    h5netcdf, h5py = (optional_package(name) for name in ("h5netcdf", "h5py"))
    sizes = [coordinates.sizes[d] for d in dims]
    _check_space(place, 4 * len(about) * math.prod(sizes) + coordinates.nbytes)
    coordinates.to_netcdf(place, engine="h5netcdf")
    others = [str(c) for c in coordinates.coords if c not in coordinates.dims]
    with h5netcdf.File(place, "a") as file:
        for name, attributes in about.items():
            array = file.create_variable(
                name, dims, "float32", fillvalue=np.float32(np.nan), chunks=chunks
            )
            array.attrs.update(attributes)
            if others:
                array.attrs["coordinates"] = " ".join(others)
    with h5py.File(place, "r+") as file:
        yield [file[name] for name in about]


def _check_space(place, num_bytes):
    """Raises `OSError` where the disk is too full.

    If it fills up later, HDF5 may end the process; the place stays as it was even so.
    """
    free = shutil.disk_usage(place.parent).free
    if free < num_bytes:
        raise OSError(errno.ENOSPC, f"No space left on device ({free:,} bytes)")


def _consolidate(zarr, place):
    """Puts all metadata into one file too, which is what readers look for first."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata is currently")
        zarr.consolidate_metadata(place)


@contextlib.contextmanager
def whole_output(path: str | os.PathLike, *, overwrite: bool) -> Iterator[Path]:
    """A place beside `path` to write to, renamed to it when all went well.

    Args:
        path: of a zarr, which is a folder, or of a netCDF file (.nc).
        overwrite: replace what is there.

    Raises:
        GriddedError: if the place is taken, or the path ends in neither.
    """
    check_place(path, overwrite=overwrite)
    place = Path(path)
    if place.suffix == ".zarr":
        with contextlib.ExitStack() as stack:
            try:
                folder = output_folder(path, overwrite=overwrite, marks=_MARKS)
                partial = stack.enter_context(folder)
            except ValueError as error:
                raise GriddedError(str(error)) from error
            yield partial
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.stem}.{uuid.uuid4().hex}.nc")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        check_place(path, overwrite=overwrite)  # it may have come in the meantime
        os.replace(partial, place)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def check_place(path: str | os.PathLike, *, overwrite: bool) -> None:
    """Raises `GriddedError` if nothing can be written there, before any work."""
    place = Path(path)
    if place.suffix not in (".zarr", ".nc"):
        raise GriddedError(f"the path must end in .zarr or .nc; got {path}.")
    if not place.exists() and not place.is_symlink():
        return
    if not overwrite:
        raise GriddedError(
            f"{path} is there already; choose another place, or overwrite it."
        )
    is_file = place.suffix == ".nc" and place.is_file()
    is_zarr = place.is_dir() and any((place / mark).is_file() for mark in _MARKS)
    if not (is_file or (place.suffix == ".zarr" and is_zarr)):
        kind = "netCDF file" if place.suffix == ".nc" else "zarr"
        raise GriddedError(f"{path} is not overwritten: it is no {kind}.")


def _made_now(attributes):
    try:
        version = f" {importlib.metadata.version('ensjax')}"
    except importlib.metadata.PackageNotFoundError:  # run from its source
        version = ""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    line = f"{now} written by ensjax{version}"
    earlier = attributes.get("history")
    history = f"{line}\n{earlier}" if earlier else line
    return {"Conventions": "CF-1.11", **attributes, "history": history}
