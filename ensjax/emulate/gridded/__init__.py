"""Gridded archives: zarr and netCDF as they are, grids, and scores of forecasts.

Needs the extra `weather` (xarray, zarr, h5netcdf); importing this does not load them.
"""

from ensjax.emulate.gridded.conversion import archive_from_dataset, archive_to_datasets
from ensjax.emulate.gridded.layout import GriddedError, Layout, find_layout
from ensjax.emulate.gridded.opening import open_gridded
from ensjax.emulate.gridded.standard import standard_dataset
from ensjax.emulate.gridded.streaming import (
    Channel,
    Pairs,
    case_block,
    channels_of,
    pair,
    stream_cases,
)
from ensjax.emulate.gridded.writing import (
    forecast_writer,
    write_dataset,
    write_forecast,
)

__all__ = [
    "Channel",
    "GriddedError",
    "Layout",
    "Pairs",
    "archive_from_dataset",
    "archive_to_datasets",
    "case_block",
    "channels_of",
    "find_layout",
    "forecast_writer",
    "open_gridded",
    "pair",
    "standard_dataset",
    "stream_cases",
    "write_dataset",
    "write_forecast",
]
