"""Which rows a prediction is of, and which rows its maker has seen.

What is fitted on predictions (a temperature, a meta-model, weights, a conformal
threshold) is only worth something on rows that the members were not trained on, and is
only tested on rows that it was not fitted on itself. Predictions that carry a
`Provenance` make the fitting functions check both.

What was fitted and is applied to `Predictions` gives `Predictions`, and has then seen
the rows of its fit as well as those of its members: a second stage that is fitted on
them, or a score (`scores.evaluate`), is refused. What gives arrays of them, such as
conformal sets, refuses the rows of its fit itself. What is given arrays gives arrays,
which say nothing of their rows.

What is unknown is not checked, and stays unknown: predictions without a `Provenance`,
and members of which it does not say what they have seen. Merged with others and
combined they are still unknown, while what is known of the others still counts.

What is fitted also keeps in which order its members, classes and levels were, and is
applied to no other.
"""

from ensjax.provenance.fits import FittedRows, check_fitting_rows, check_scored_rows
from ensjax.provenance.rows import (
    LeakageError,
    Provenance,
    merge_members,
    row_numbers,
)

__all__ = [
    "FittedRows",
    "LeakageError",
    "Provenance",
    "check_fitting_rows",
    "check_scored_rows",
    "merge_members",
    "row_numbers",
]
