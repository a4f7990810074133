"""Forecasts as files: CSV that any program writes, npz that keeps everything.

A CSV file has one line per number, and its header says what the numbers are:

    member,row,class,value                     probabilities; each row's sum to 1
    member,row,class                           votes
    member,row,target,value[,lower,upper]      points, with the ends of an interval
    member,row,value[,lower,upper]             points of one target
    member,row,level,value                     quantiles

`scale`, a standard deviation, may stand among the last columns of points, and `seen`
among those of all: 1 where the member was trained on the row, 0 where it was not, empty
where that is unknown. Columns may come in any order. `row` is a row number or any text.
Lines may come in any order, and what a member does not say of a row is masked.

A line that holds a member, a row, a class or a target alone names it:

    ,,AD                                       a class, beside `member,row,class`

Where lines name members (rows, classes, targets), they name all, and this is their
order; otherwise these are the ones that are found, in the order that
`load_predictions` states. A vote without a class abstains, in a file that names its
classes: that counts as wrong, where a line that is left out does not count.
"""

from ensjax.prediction_files.reading import load_predictions
from ensjax.prediction_files.writing import save_predictions

__all__ = ["load_predictions", "save_predictions"]
