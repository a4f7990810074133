"""Prefetched chunks: the layout, the position, exceptions, and a thread that ends."""

import threading
import time

import numpy as np
import pytest

from ensjax.data import as_batches, prefetch_chunks, stack_steps, stream

X = np.arange(40)


def _num_threads():
    return sum(thread.name == "ensjax-prefetch" for thread in threading.enumerate())


def _batches(num_batches):
    for step in range(num_batches):
        yield {"x": np.full((4, 3), step), "y": np.full(4, step)}


def test_chunks_are_batch_first_step_second_in_order():
    with prefetch_chunks(_batches(6), steps_per_chunk=3) as chunks:
        came = list(chunks)
    assert [chunk["x"].shape for chunk in came] == [(4, 3, 3), (4, 3, 3)]
    assert [chunk["y"].shape for chunk in came] == [(4, 3), (4, 3)]
    for i, chunk in enumerate(came):
        for step in range(3):
            assert (chunk["x"][:, step] == 3 * i + step).all()


def test_the_last_chunk_holds_the_steps_that_are_left():
    with prefetch_chunks(_batches(5), steps_per_chunk=3) as chunks:
        assert [chunk["y"].shape[1] for chunk in chunks] == [3, 2]
        assert list(chunks) == []
    assert _num_threads() == 0


def test_the_position_is_that_of_the_last_chunk_handed_out():
    def build():
        return as_batches(stream(X, batch_size=4, seed=0))

    batches = build()
    with prefetch_chunks(batches, steps_per_chunk=3, num_ahead=4) as chunks:
        start = chunks.get_state()
        first = next(chunks)
        next(chunks)
        state = chunks.get_state()
        time.sleep(0.2)  # the thread reads ahead; the position must not
        assert chunks.get_state() == state
        expected = [next(chunks) for _ in range(4)]
    for position, wanted in ((state, expected), (start, [first])):
        restored = build()
        restored.set_state(position)
        with prefetch_chunks(restored, steps_per_chunk=3) as chunks:
            came = [next(chunks) for _ in wanted]
        np.testing.assert_array_equal(came, wanted)


def test_a_loaders_exception_comes_after_the_chunks_before_it():
    def broken():
        yield from _batches(4)
        raise OSError("disk on fire")

    with prefetch_chunks(broken(), steps_per_chunk=2) as chunks:
        assert next(chunks)["y"][0, 0] == 0
        assert next(chunks)["y"][0, 0] == 2
        with pytest.raises(OSError, match="disk on fire"):
            next(chunks)
    assert _num_threads() == 0


def test_an_exception_while_placing_is_raised_too():
    def place(chunk):
        raise MemoryError("device full")

    with (
        prefetch_chunks(_batches(4), steps_per_chunk=2, place=place) as chunks,
        pytest.raises(MemoryError, match="device full"),
    ):
        next(chunks)


def test_leaving_early_stops_the_thread_and_the_reading():
    drawn = []

    def endless():
        while True:
            drawn.append(None)
            yield np.zeros(2)

    with prefetch_chunks(endless(), steps_per_chunk=2, num_ahead=2) as chunks:
        next(chunks)
        assert _num_threads() == 1
    assert _num_threads() == 0
    # One taken, two waiting, one in the maker's hands.
    assert len(drawn) <= 8
    with pytest.raises(StopIteration):
        next(chunks)
    chunks.close()  # twice is fine


def test_place_runs_on_every_chunk():
    double = prefetch_chunks(
        iter([np.ones(2), np.ones(2)]), steps_per_chunk=2, place=lambda c: 2 * c
    )
    with double as chunks:
        np.testing.assert_array_equal(next(chunks), np.full((2, 2), 2.0))


def test_stacking_one_batch_adds_a_step_axis():
    assert stack_steps([np.ones((4, 3))]).shape == (4, 1, 3)


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="at least 1; got 0 and 2"):
        prefetch_chunks(_batches(1), steps_per_chunk=0)
    with (
        prefetch_chunks(_batches(1), steps_per_chunk=1) as chunks,
        pytest.raises(TypeError, match="cannot save its position"),
    ):
        chunks.get_state()
