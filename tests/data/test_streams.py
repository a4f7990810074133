"""Streams: whole epochs, process shards, saved positions, and checked batches."""

import json
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.data import as_batches, stream

X = np.arange(22, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
Y = np.arange(22)


def _rows(batches):
    return np.concatenate([labels for _, labels in batches])


def test_each_epoch_visits_rows_at_most_once_in_an_order_of_its_own():
    batches = list(stream((X, Y), batch_size=4, seed=0, num_epochs=2))
    assert len(batches) == 10
    for images, labels in batches:
        assert isinstance(images, np.ndarray) and images.shape == (4, 3)
        np.testing.assert_array_equal(images[:, 0], labels)
    first, second = _rows(batches[:5]), _rows(batches[5:])
    assert len(set(first)) == 20 and len(set(second)) == 20
    assert not np.array_equal(first, second)
    again = list(stream((X, Y), batch_size=4, seed=0, num_epochs=2))
    np.testing.assert_array_equal(_rows(again), _rows(batches))
    other = list(stream((X, Y), batch_size=4, seed=1, num_epochs=1))
    assert not np.array_equal(_rows(other), first)


def test_without_shuffle_rows_come_in_the_sources_order():
    batches = list(stream({"x": Y}, batch_size=5, seed=0, shuffle=False, num_epochs=1))
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in batches]), Y[:20])


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_are_disjoint_and_together_the_one_process_stream(process_count):
    whole = list(stream((X, Y), batch_size=4, seed=3, num_epochs=2))
    parts = [
        list(
            stream(
                (X, Y),
                batch_size=4,
                seed=3,
                num_epochs=2,
                process_index=i,
                process_count=process_count,
            )
        )
        for i in range(process_count)
    ]
    for step, (_, labels) in enumerate(whole):
        joined = np.concatenate([part[step][1] for part in parts])
        np.testing.assert_array_equal(joined, labels)
    seen = [set(_rows(part[:5]).tolist()) for part in parts]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 20


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize("wrapped", [False, True], ids=["grain", "as_batches"])
def test_a_restored_position_continues_with_the_same_batches(num_threads, wrapped):
    def build():
        dataset = stream((X, Y), batch_size=4, seed=0, num_threads=num_threads)
        return as_batches(dataset) if wrapped else iter(dataset)

    batches = build()
    for _ in range(7):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    expected = [next(batches)[1] for _ in range(6)]
    fresh = build()
    fresh.set_state(state)
    np.testing.assert_array_equal([next(fresh)[1] for _ in range(6)], expected)
    batches.set_state(state)
    np.testing.assert_array_equal([next(batches)[1] for _ in range(6)], expected)


def test_position_survives_repeated_passes_over_the_dataset():
    def build():
        return as_batches(stream(Y, batch_size=8, seed=0, num_epochs=1), num_epochs=3)

    batches = build()
    for _ in range(4):  # two batches a pass: this is the end of the second pass
        next(batches)
    state = batches.get_state()
    expected = list(batches)
    assert len(expected) == 2
    fresh = build()
    fresh.set_state(state)
    np.testing.assert_array_equal(list(fresh), expected)


def test_a_data_source_gives_the_batches_of_its_arrays():
    class Source:
        def __len__(self):
            return 22

        def __getitem__(self, row):
            assert isinstance(row, int)
            return {"x": X[row], "y": Y[row]}

    from_source = stream(Source(), batch_size=4, seed=0, num_epochs=1)
    from_arrays = stream(
        {"x": X, "y": jnp.asarray(Y)}, batch_size=4, seed=0, num_epochs=1
    )
    for a, b in zip(from_source, from_arrays, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
        np.testing.assert_array_equal(a["y"], b["y"])
        assert isinstance(b["y"], np.ndarray)


def test_streams_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="from 1 to the 22 examples.*got 23"):
        stream((X, Y), batch_size=23, seed=0)
    with pytest.raises(ValueError, match=r"leaf\[0\] has 22 and leaf\[1\] has 20"):
        stream((X, Y[:20]), batch_size=2, seed=0)
    with pytest.raises(ValueError, match=r"leaf\['x'\].*at least one"):
        stream({"x": X[:0]}, batch_size=2, seed=0)
    with pytest.raises(ValueError, match="process_count=3; got 4"):
        stream((X, Y), batch_size=4, seed=0, process_count=3)
    with pytest.raises(ValueError, match="process_index must be from 0 to 1; got 2"):
        stream((X, Y), batch_size=4, seed=0, process_index=2, process_count=2)
    with pytest.raises(TypeError, match="as_batches"):
        stream(iter([]), batch_size=4, seed=0)


class Tensor:
    """What a PyTorch CPU tensor is to us: it converts to NumPy and is no pytree."""

    def __init__(self, array):
        self._array = np.asarray(array)

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._array, dtype)


class Loader:
    """What a PyTorch DataLoader is to us: it can be iterated again and again."""

    def __init__(self, sizes, convert=Tensor):
        self._sizes, self._convert = sizes, convert

    def __iter__(self):
        for size in self._sizes:
            yield [self._convert(np.ones((size, 3))), self._convert(np.arange(size))]


def test_loaders_of_tensors_become_numpy_batches():
    batches = list(as_batches(Loader([4, 4]), num_epochs=2))
    assert len(batches) == 4
    assert all(isinstance(leaf, np.ndarray) for batch in batches for leaf in batch)


def test_a_real_pytorch_loader_works():
    torch = pytest.importorskip("torch")
    dataset = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    loader = torch.utils.data.DataLoader(dataset, batch_size=5)
    with pytest.warns(UserWarning, match="2 examples instead of 5 and is dropped"):
        batches = list(as_batches(loader))
    np.testing.assert_array_equal(_rows(batches), Y[:20])


def test_a_short_last_batch_is_dropped_in_every_epoch_with_one_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = list(as_batches(Loader([4, 4, 2]), num_epochs=3))
    assert [len(labels) for _, labels in batches] == [4] * 6
    assert len(caught) == 1 and "2 examples instead of 4" in str(caught[0].message)


def test_a_short_batch_before_the_last_is_refused():
    with pytest.raises(ValueError, match=r"batch\[0\] has 2 examples.*had 4"):
        list(as_batches(Loader([4, 2, 4])))
    with pytest.raises(ValueError, match="the 4 examples of the first; one has 6"):
        list(as_batches(Loader([4, 6])))


@pytest.mark.parametrize(
    "second, message",
    [
        (
            {"x": np.ones((4, 2)), "y": np.ones(4)},
            r"batch\['x'\] changed.*\(3,\).*\(2,\)",
        ),
        (
            {"x": np.ones((4, 3)), "y": np.ones(4, int)},
            r"batch\['y'\] changed from float64",
        ),
        ({"x": np.ones((4, 3))}, "structure of the first"),
        (
            {"x": np.ones((4, 3)), "y": np.ones(3)},
            r"leaf\['x'\] has 4 and leaf\['y'\] has 3",
        ),
        (
            {"x": np.ones((4, 3)), "y": np.float64(1)},
            r"leaf\['y'\].*leading example axis",
        ),
    ],
)
def test_a_batch_that_changes_is_refused_and_the_leaf_is_named(second, message):
    first = {"x": np.ones((4, 3)), "y": np.ones(4)}
    batches = as_batches([first, second])
    next(batches)
    with pytest.raises(ValueError, match=message):
        next(batches)


def test_empty_and_used_up_iterables_are_refused():
    with pytest.raises(ValueError, match="gave none in epoch 0"):
        next(as_batches([]))
    with pytest.raises(ValueError, match="needs something that can be started again"):
        as_batches(iter([X]), num_epochs=None)
    with pytest.raises(ValueError, match="at least 1 or None; got 0"):
        as_batches([X], num_epochs=0)


def test_position_of_a_loader_without_one_is_refused():
    batches = as_batches(Loader([4]))
    assert not batches.can_save_position
    with pytest.raises(TypeError, match="cannot save its position"):
        batches.get_state()
    with pytest.raises(TypeError, match="cannot save its position"):
        batches.set_state({})
    assert as_batches(stream(Y, batch_size=4, seed=0)).can_save_position
