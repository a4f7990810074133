"""Files of forecasts: what is written is read back, and mistakes name their line."""

import csv
import datetime

import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.prediction_files import load_predictions, save_predictions
from ensjax.predictions import Predictions
from ensjax.provenance import Provenance

RNG = np.random.default_rng(0)
MASK = np.asarray([[1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1]], bool)
NAMES = ("ours", "theirs, too", "it")
# Files know rows by number, members by name.
TOLD = dict(
    mask=MASK, names=NAMES, provenance=Provenance("toy", np.asarray([4, 7, 9, 12]))
)


def one_of_each():
    probs = RNG.dirichlet([1, 1, 1], size=(3, 4))
    points = RNG.normal(size=(3, 4, 2))
    ends = dict(lower=points - 1, upper=points + 2, scale=np.abs(points))
    votes = np.where(MASK, np.asarray([[2, 0, 1, 2], [0, 1, 2, 2], [1, 0, 0, 0]]), -1)
    classes = ("CN", "MCI", "AD")
    return {
        "probabilities": Predictions.from_probs(probs, columns=classes, **TOLD),
        "votes": Predictions.from_votes(votes, 3, columns=classes, **TOLD),
        "points": Predictions.from_points(points[..., 0], **TOLD),
        "targets": Predictions.from_points(
            points, columns=("ADAS13", "Ventricles"), **ends, **TOLD
        ),
        "quantiles": Predictions.from_quantiles(points, (0.25, 0.9), **TOLD),
    }


def masked(predictions, name):
    value = getattr(predictions, name)
    if value is None:
        return None
    mask = np.asarray(predictions.mask)
    mask = np.broadcast_to(mask.reshape(3, -1), (3, 4))
    return np.where(mask.reshape(3, 4, *[1] * (value.ndim - 2)), value, 0)


@pytest.mark.parametrize("suffix", ["csv", "npz"])
@pytest.mark.parametrize("name", one_of_each())
def test_what_is_saved_is_loaded(tmp_path, name, suffix):
    said, path = one_of_each()[name], tmp_path / f"forecasts.{suffix}"
    save_predictions(path, said)
    csv_only = dict(source="toy") if suffix == "csv" else {}
    back = load_predictions(path, **csv_only)
    for field in ("kind", "names", "num_classes", "columns", "levels", "provenance"):
        assert getattr(back, field) == getattr(said, field), field
    np.testing.assert_array_equal(back.mask, said.mask)
    for field in ("values", "scale", "lower", "upper"):
        want, got = masked(said, field), masked(back, field)
        if field == "values" and name == "probabilities":
            np.testing.assert_allclose(got, want, atol=1e-5)  # through exp and log
        elif want is None:
            assert got is None
        else:
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["a.npz", "a.csv"])
def test_files_keep_what_members_have_seen_and_what_is_unknown(tmp_path, name):
    seen = np.eye(3, 4, dtype=bool)
    about = Provenance(
        "toy", np.arange(4), seen=seen, known=np.array([True, False] * 2)[:3]
    )
    for one in (about, Provenance.of("toy", np.arange(4), trained_on=[2])):
        votes = Predictions.from_votes(np.zeros((3, 4), int), 2, provenance=one)
        save_predictions(tmp_path / name, votes)
        source = {} if name == "a.npz" else {"source": "toy", "columns": (0, 1)}
        back = load_predictions(tmp_path / name, **source).provenance
        np.testing.assert_array_equal(
            back.seen, np.broadcast_to(one.seen, back.seen.shape)
        )
        np.testing.assert_array_equal(back.known, one.known)
    if source:
        with pytest.raises(ValueError, match="line 1: seen .* source="):
            load_predictions(tmp_path / name)


def test_npz_keeps_weights_logits_and_training_rows(tmp_path):
    provenance = Provenance.of("toy", np.arange(4), trained_on=[[0], [1], [2]])
    said = Predictions.from_logits(
        RNG.normal(size=(3, 4, 2)), weights=np.arange(12.0).reshape(3, 4)
    ).replace(provenance=provenance)
    save_predictions(tmp_path / "a.npz", said)
    back = load_predictions(tmp_path / "a.npz")
    assert back.provenance == provenance and back.kind == "logits"
    np.testing.assert_array_equal(back.weights, said.weights)
    np.testing.assert_array_equal(back.values, said.values)
    with pytest.raises(ValueError, match="holds no weights"):
        save_predictions(tmp_path / "a.csv", said)


def written(tmp_path, text):
    path = tmp_path / "f.csv"
    path.write_text(text)
    return path


def test_lines_in_any_order_become_rows_and_columns_as_asked(tmp_path):
    path = written(
        tmp_path,
        "row,class,member,value\n"
        "10,no,a,0.25\n 2,yes, a ,1\n2,no,a,0\n"
        "10,yes,a,.75\n10,no,b,0.5\n10,yes,b,0.5\n",
    )
    said = load_predictions(path)
    assert said.names == ("a", "b") and said.columns == ("no", "yes")
    np.testing.assert_allclose(said.probs[0], [[0, 1], [0.25, 0.75]], atol=1e-6)
    np.testing.assert_array_equal(said.mask, [[True, True], [False, True]])
    other = load_predictions(path, rows=[10, 3, 2], columns=["yes", "no"])
    np.testing.assert_allclose(
        other.probs[0, [0, 2]], [[0.75, 0.25], [1, 0]], atol=1e-6
    )
    np.testing.assert_array_equal(other.mask, [[1, 0, 1], [1, 0, 0]])


PROBS, POINTS = "member,row,class,value\n", "member,row,target,value,lower,upper\n"


@pytest.mark.parametrize(
    "text, line, match",
    [
        ("", 1, "header"),
        ("member,value\n", 1, "header must hold member, row"),
        ("member,row,class,target,value\n", 1, "do not go together"),
        ("member,row,target,value,lower\n", 1, "do not go together"),
        ("member,row,target\n", 1, "do not go together"),
        (PROBS + "a,0,x\n", 2, "4 columns"),
        (PROBS + "a,0,x,1\na,,x,1\n", 3, "row is empty"),
        (PROBS + "a,0,x,one\n", 2, "finite number; got 'one'"),
        (PROBS + "a,0,x,nan\n", 2, "finite number"),
        (PROBS + "a,0,x,1.5\n", 2, "a probability"),
        (PROBS + "a,0,x,.5\nb,0,x,1\na,0,x,.5\n", 4, "twice; first on line 2"),
        (PROBS + "a,0,x,.5\na,0,y,.5\nb,0,x,1\n", 4, "nothing of class 'y'"),
        (PROBS + "a,1,x,1\na,1,y,0\na,0,x,.5\na,0,y,.4\n", 4, "sum to 0.9"),
        (POINTS + "a,0,u,1,0,2\na,0,v,1,0,2\nb,0,u,1,0,2\n", 4, "of target 'v'"),
        ("member,row,class\na,0,x\na,0,y\n", 3, "twice"),
        ("member,row,level,value\na,0,1.5,3\n", 2, "between 0 and 1"),
    ],
)
def test_mistakes_name_the_file_and_the_line(tmp_path, text, line, match):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=match) as caught:
        load_predictions(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")


def test_a_class_that_is_not_expected_names_its_line(tmp_path):
    path = written(tmp_path, PROBS + "a,0,x,.5\na,0,z,.5\n")
    with pytest.raises(ValueError, match="line 3: unknown class 'z'"):
        load_predictions(path, columns=["x", "y"])


def test_text_rows_have_no_row_numbers(tmp_path):
    path = written(tmp_path, "member,row,value\na,anna,1\na,bob,2\n")
    assert load_predictions(path).points.tolist() == [[1.0, 2.0]]
    with pytest.raises(ValueError, match="rows that are numbers"):
        load_predictions(path, source="clinic")


def test_other_suffixes_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="npz or .csv"):
        load_predictions(tmp_path / "a.json")
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="not written by save_predictions"):
        load_predictions(tmp_path / "a.npz")
    features = Predictions.from_features(np.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match="saved as .npz"):
        save_predictions(tmp_path / "a.csv", features)


def loaded(path, said, **options):
    """What is loaded of what was saved; all that a member says must be the same."""
    save_predictions(path, said)
    back = load_predictions(path, **options)
    shape = said.values.shape[:2]
    mask, found = (
        np.broadcast_to(np.asarray(of.mask).reshape(len(of.mask), -1), shape)
        for of in (said, back)
    )
    np.testing.assert_array_equal(found, mask)
    np.testing.assert_array_equal(
        np.asarray(back.values)[mask], np.asarray(said.values)[mask]
    )
    assert (back.names, back.num_classes) == (said.names, said.num_classes)
    return back


@pytest.mark.parametrize("suffix", ["csv", "npz"])
def test_votes_keep_their_classes_and_abstentions(tmp_path, suffix):
    """Numbered by their first line, classes of two files of one system differed."""
    path = tmp_path / f"votes.{suffix}"
    for votes in ([[1, 0, 1]], [[2, 2, 2]], [[1, -1, 1]], [[-1, -1, -1]]):
        said = Predictions.from_votes(np.asarray(votes), 3)
        back = loaded(path, said)
        assert back.columns in (None, (0, 1, 2))
        for columns in (("CN", "MCI", "AD"), (7, 3, 5), ("10", "9", "x")):
            assert loaded(path, said.replace(columns=columns)).columns == columns
    if suffix == "csv":
        path.write_text("member,row,class\na,0,b\na,1,\n")
        with pytest.raises(ValueError, match="line 3: class is empty.*name the class"):
            load_predictions(path, columns=("a", "b"))


@pytest.mark.parametrize("suffix", ["csv", "npz"])
def test_rows_and_members_of_whom_nothing_is_said_stay_in_their_place(tmp_path, suffix):
    path = tmp_path / f"points.{suffix}"
    about = Provenance("toy", np.asarray([9, 4, 7]))  # as of a part, which is shuffled
    mask = np.asarray([[False, True, False], [False] * 3, [True, True, False]])
    said = Predictions.from_points(
        RNG.normal(size=(3, 3)).astype(np.float32),
        mask=mask,
        names=("b", "silent", "a"),
        provenance=about,
    )
    source = {"source": "toy"} if suffix == "csv" else {}
    assert loaded(path, said, **source).provenance == about
    whole = said.replace(mask=jnp.ones(3, bool))
    assert loaded(path, whole, **source).provenance == about
    targets = Predictions.from_points(
        RNG.normal(size=(2, 3, 2)).astype(np.float32), columns=("b", "a")
    )
    assert loaded(path, targets).columns == ("b", "a")
    probs = Predictions.from_probs(np.full((1, 3, 2), 0.5), columns=("yes", "no"))
    assert loaded(path, probs).columns == ("yes", "no")
    if suffix == "csv":
        with pytest.raises(ValueError, match="these are all masked"):
            save_predictions(path, said.replace(mask=jnp.zeros(3, bool)))


def test_classes_of_somebodys_file_are_sorted_integers_by_value(tmp_path):
    path = written(tmp_path, "member,row,class\na,0,10\na,1,9\nb,0,9\n")
    said = load_predictions(path)
    assert said.columns == (9, 10) and said.votes[0].tolist() == [1, 0]
    path = written(tmp_path, "member,row,class\na,0,yes\na,1,no\n")
    assert load_predictions(path).columns == ("no", "yes")
    fixed = load_predictions(path, columns=("yes", "no", "unsure"))
    assert fixed.columns == ("yes", "no", "unsure") and fixed.num_classes == 3
    assert fixed.votes[0].tolist() == [0, 1]
    path = written(tmp_path, PROBS + "a,0,z,.25\na,0,b,.75\n")
    assert load_predictions(path).columns == ("b", "z")
    path = written(tmp_path, PROBS + ",,z,\n,,b,\na,0,b,.75\na,0,z,.25\n")
    assert load_predictions(path).columns == ("z", "b")
    path = written(tmp_path, "member,row,class\n,,b\na,0,b\na,1,c\n")
    with pytest.raises(ValueError, match="line 4: class 'c' is not among those named"):
        load_predictions(path)
    path = written(tmp_path, "member,row,class\n,,b\n,,b\na,0,b\n")
    with pytest.raises(ValueError, match="line 3: class 'b' is named twice; .*line 2"):
        load_predictions(path)


@pytest.mark.parametrize("suffix", ["csv", "npz"])
def test_what_cannot_be_saved_leaves_the_file_as_it_was(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"a.{suffix}"
    votes = Predictions.from_votes(np.zeros((2, 3), int), 2)
    save_predictions(path, votes)
    before = path.read_bytes()
    day = datetime.date(2026, 1, 1)
    cases = {
        "csv": {
            "saved as .npz": Predictions.from_features(np.zeros((1, 2, 3))),
            "holds no weights": votes.replace(weights=jnp.arange(2.0)),
            "names of members must be": votes.replace(names=("a", "a")),
            "have spaces": votes.replace(columns=("a ", "a")),
            "must be 2 different": votes.replace(columns=(1, "1")),
            "finite numbers; mask": Predictions.from_points([[1.0, np.nan]]),
            "from 0 to 1": votes.replace(values=jnp.full((2, 3), 2)),
        },
        "npz": {"columns are saved if they": votes.replace(columns=(day, "b"))},
    }[suffix]
    for told, wrong in cases.items():
        with pytest.raises((ValueError, TypeError), match=told):
            save_predictions(path, wrong)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1

    def half_way(file, **given):
        file.write("half" if suffix == "csv" else b"half")
        raise OSError("the disk is full")

    if suffix == "csv":
        monkeypatch.setattr(csv, "writer", half_way)
    else:
        monkeypatch.setattr(np, "savez", half_way)
    with pytest.raises(OSError, match="is full"):
        save_predictions(path, votes)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_labels_of_numpy_are_saved(tmp_path):
    said = Predictions.from_logits(np.zeros((1, 2, 2)), columns=np.array([3, 7]))
    save_predictions(tmp_path / "a.npz", said)
    assert load_predictions(tmp_path / "a.npz").columns == (3, 7)


def test_rows_that_nobody_names_are_refused(tmp_path):
    path = written(tmp_path, "member,row,value\na,1,2.5\na,4,3.5\n")
    with pytest.raises(
        ValueError, match="nothing of the rows 7, 8; .* rows such as 1, 4"
    ):
        load_predictions(path, rows=[7, 8])
    some = load_predictions(path, rows=[7, 4])
    assert some.mask.tolist() == [[False, True]]
    for wrong in (np.array([True, False]), [False, True]):
        with pytest.raises(TypeError, match="got a mask.*flatnonzero"):
            load_predictions(path, rows=wrong)
        with pytest.raises(TypeError, match="got a mask"):
            save_predictions(path, some, rows=wrong)
    with pytest.raises(TypeError, match="got a set"):
        load_predictions(path, rows={4, 1})


def test_targets_keep_the_order_of_the_file_and_classes_are_sorted(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("member,row,target,value\na,0,u,1\na,0,t,2\na,1,u,3\na,1,t,4\n")
    points = load_predictions(path)
    assert points.columns == ("u", "t")
    np.testing.assert_array_equal(points.points[0], [[1, 2], [3, 4]])
    path.write_text("member,row,class,value\na,0,u,0.25\na,0,t,0.75\n")
    assert load_predictions(path).columns == ("t", "u")
