"""Gridded archives: zarr and netCDF as they are, grids, and scores of forecasts.

Needs the extra `weather` (xarray, zarr, h5netcdf); importing this does not load them.
"""

from ensjax.emulate.gridded.climatologies import climatology_reader, open_climatology
from ensjax.emulate.gridded.conversion import archive_from_dataset, archive_to_datasets
from ensjax.emulate.gridded.grids import (
    CubedSphereGrid,
    LatLonGrid,
    coarse_grid,
    gaussian_grid,
    grid_of,
)
from ensjax.emulate.gridded.layout import GriddedError, Layout, find_layout
from ensjax.emulate.gridded.opening import open_gridded, open_raw
from ensjax.emulate.gridded.overlaps import cell_overlaps
from ensjax.emulate.gridded.pairing import pair
from ensjax.emulate.gridded.regions import REGIONS, region_weights
from ensjax.emulate.gridded.regridding import (
    RegridWeights,
    bilinear_weights,
    conservative_weights,
    regrid,
    regrid_archive,
    regrid_dataset,
)
from ensjax.emulate.gridded.scorecards import notes_of, scorecard_of
from ensjax.emulate.gridded.standard import standard_dataset
from ensjax.emulate.gridded.streaming import (
    Channel,
    Pairs,
    case_block,
    channels_of,
    stream_cases,
)
from ensjax.emulate.gridded.units import is_same_unit
from ensjax.emulate.gridded.verifying import Bootstrap, verify
from ensjax.emulate.gridded.writing import (
    check_place,
    forecast_writer,
    write_dataset,
    write_forecast,
)

__all__ = [
    "Bootstrap",
    "Channel",
    "CubedSphereGrid",
    "GriddedError",
    "LatLonGrid",
    "REGIONS",
    "Layout",
    "Pairs",
    "RegridWeights",
    "archive_from_dataset",
    "archive_to_datasets",
    "bilinear_weights",
    "case_block",
    "cell_overlaps",
    "channels_of",
    "check_place",
    "climatology_reader",
    "coarse_grid",
    "conservative_weights",
    "find_layout",
    "forecast_writer",
    "gaussian_grid",
    "grid_of",
    "is_same_unit",
    "notes_of",
    "open_climatology",
    "open_gridded",
    "open_raw",
    "pair",
    "region_weights",
    "regrid",
    "regrid_archive",
    "regrid_dataset",
    "scorecard_of",
    "standard_dataset",
    "stream_cases",
    "verify",
    "write_dataset",
    "write_forecast",
]
