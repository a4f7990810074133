"""A `fit` that is asked to end saves where it is, and is the same run afterwards."""

import signal

import numpy as np
import pytest

import ensjax
from ensjax.train import preemption
from ensjax.train.preemption import Preempted

OPTIONS = dict(steps_per_call=1, log_every_steps=5, save_every_steps=10)


class Lines:
    """A logger that asks training to end after some of the lines."""

    def __init__(self, *ask_at):
        self.lines, self._ask_at = {}, ask_at

    def write(self, step, metrics):
        times = ("steps_per_second", "compile_seconds", "goodput", "chip_hours")
        left = {*times, "member_ids"}  # ids are in the first line of each call
        self.lines[step] = {k: v for k, v in metrics.items() if k not in left}
        if step in self._ask_at:
            assert preemption.request()


@pytest.fixture
def notice(monkeypatch):
    monkeypatch.setattr(preemption, "_notice", preemption._Notice())
    return preemption._notice


@pytest.fixture
def enabled(notice):
    preemption.enable()


def test_the_run_that_was_told_to_end_twice_is_the_unbroken_one(kit, tmp_path, enabled):
    ensemble, data = kit.ensemble("mlp-dropout"), kit.data("mlp-dropout")
    options = OPTIONS | dict(evaluation=data, sampling="bootstrap")
    options |= dict(early_stopping=ensjax.EarlyStopping(patience=None))
    whole, parts = Lines(), [Lines(5), Lines(15), Lines()]
    unbroken, log = kit.fit(
        ensemble, data, logger=whole, checkpoint_dir=tmp_path / "a", **options
    )
    options["checkpoint_dir"] = tmp_path / "b"
    for part, step in zip(parts, (6, 16)):
        with pytest.raises(Preempted) as error:
            kit.fit(ensemble, data, logger=part, **options)
        # The step after the request, in the middle of what the next report averages.
        assert error.value.step == step
        assert preemption.request()  # it ends: the same signal again changes nothing
        assert (tmp_path / "b" / str(step)).is_dir()
    resumed, resumed_log = kit.fit(ensemble, data, logger=parts[2], **options)
    assert resumed_log.resumed_step == 16
    kit.check_equal(resumed, unbroken)
    assert [sorted(part.lines) for part in parts] == [[5], [10, 15], [20]]
    first, second, third = (part.lines for part in parts)
    assert first | second | third == whole.lines
    for name, values in log.metrics.items():
        np.testing.assert_array_equal(resumed_log.metrics[name], values)


@pytest.mark.slow
def test_a_stream_goes_on_where_it_was_told_to_end(kit, tmp_path, enabled):
    def stream():
        return ensjax.data.stream(kit.data(), batch_size=8, seed=3)

    options = OPTIONS | dict(steps_per_call=5, checkpoint_dir=tmp_path / "a")
    unbroken, _ = kit.fit(kit.ensemble(), stream(), **options)
    options["checkpoint_dir"] = tmp_path / "b"
    with pytest.raises(Preempted) as error:
        kit.fit(kit.ensemble(), stream(), logger=Lines(10), **options)
    assert error.value.step == 15
    resumed, log = kit.fit(kit.ensemble(), stream(), **options)
    assert log.resumed_step == 15
    kit.check_equal(resumed, unbroken)


def test_a_request_after_the_last_look_finds_everything_saved(kit, tmp_path, enabled):
    options = OPTIONS | dict(checkpoint_dir=tmp_path)
    with pytest.raises(Preempted) as error:
        kit.fit(kit.ensemble(), kit.data(), logger=Lines(20), **options)
    assert error.value.step == 20
    _, log = kit.fit(kit.ensemble(), kit.data(), **options)
    assert log.resumed_step == 20


def test_nothing_is_asked_where_nothing_is_saved_or_trained(kit, tmp_path, enabled):
    seen = []

    class Ask:
        def write(self, step, metrics):
            seen.append(preemption.request())

    assert not preemption.request()
    kit.fit(kit.ensemble(), kit.data(), logger=Ask())
    assert seen and not any(seen)
    kit.fit(kit.ensemble(), kit.data(), checkpoint_dir=tmp_path)
    assert not preemption.request()


def test_a_fit_of_its_own_touches_no_signal_and_looks_for_none(kit, tmp_path, notice):
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    seen = []

    class Ask:
        def write(self, step, metrics):
            seen.append(preemption.request())
            for number, handler in handlers.items():
                assert signal.getsignal(number) == handler

    kit.fit(kit.ensemble(), kit.data(), logger=Ask(), checkpoint_dir=tmp_path)
    assert seen and not any(seen)
