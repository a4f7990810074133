"""Figures: functions that take arrays and return a matplotlib `Figure`.

Importing this package imports matplotlib; nothing else in ensjax does.
"""

from ensjax.plot.comparisons import bars, histograms, metric_dots
from ensjax.plot.curves import (
    learning_curves,
    metric_against_size,
    metric_under_shift,
    risk_coverage,
)
from ensjax.plot.grids import disagreement_matrix, image_grid
from ensjax.plot.history import member_history
from ensjax.plot.reliability import reliability
from ensjax.plot.scorecards import scorecard
from ensjax.plot.style import Figure, save

__all__ = [
    "Figure",
    "bars",
    "disagreement_matrix",
    "histograms",
    "image_grid",
    "learning_curves",
    "member_history",
    "metric_against_size",
    "metric_dots",
    "metric_under_shift",
    "reliability",
    "risk_coverage",
    "save",
    "scorecard",
]
