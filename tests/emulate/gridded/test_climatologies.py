"""Which row of a climatology a time takes."""

import numpy as np
import pytest

pytest.importorskip("xarray")

from ensjax.emulate.gridded import climatologies
from ensjax.emulate.gridded.layout import GriddedError


@pytest.mark.parametrize("labels", [[0, 6, 12, 18], [12, 18, 0, 6], [18, 12, 6, 0]])
def test_hours_may_come_in_any_order(labels):
    times = np.array(["2020-03-01T00", "2020-03-01T07", "2020-03-01T23"], "M8[ns]")
    rows = climatologies._season_rows(labels, "hour", times, "climate")
    assert [labels[row] for row in rows] == [0, 6, 18]
    with pytest.raises(GriddedError, match="no hour 0; it has 6 to 18"):
        climatologies._season_rows([18, 6], "hour", times, "climate")
