"""On an object store a lease keeps the run to one process, and outlives no holder."""

import threading

import pytest
from etils import epath

from ensjax.experiment import lease
from ensjax.experiment.exit_codes import ConfigError
from ensjax.experiment.json_files import read_json, write_json
from ensjax.experiment.lease import Lease, take_lease


class FakeTime:
    """Seconds pass only in `sleep`, and something may happen meanwhile."""

    def __init__(self, *, offset=0.0):
        self.now, self._offset, self._events = 1000.0, offset, []

    def at(self, seconds_from_now, act):
        self._events.append((self.now + seconds_from_now, act))

    def time(self):
        return 1e9 + self.now + self._offset

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        due = [event for event in self._events if event[0] <= self.now]
        self._events = [event for event in self._events if event[0] > self.now]
        for _, act in due:
            act()


@pytest.fixture
def clock():
    return FakeTime()


@pytest.fixture
def said():
    return []


@pytest.fixture
def take(tmp_path, clock, said, monkeypatch):
    """Takes the lease of one folder; the thread never wakes up by itself."""
    monkeypatch.setattr(lease, "RENEW_SECONDS", 3600.0)
    taken = []

    def take(**options):
        options = {"clock": clock, "say": said.append, "on_lost": said.append} | options
        taken.append(take_lease(epath.Path(tmp_path), **options))
        return taken[-1]

    yield take
    for held in taken:
        held.release()


def stored(tmp_path):
    return read_json(tmp_path / "lease.json")


def renew_every_20_seconds(held, clock):
    def act():
        held.renew()
        clock.at(20.0, act)

    clock.at(20.0, act)


def test_a_free_lease_is_taken_at_once_and_given_back(take, tmp_path, clock, said):
    begin = clock.now
    held = take()
    assert clock.now - begin < 5 and held.is_ours()
    assert not stored(tmp_path)["is_released"]
    held.release()
    assert stored(tmp_path)["is_released"]
    begin = clock.now
    assert take().is_ours()
    assert clock.now - begin < 5 and said == []


def test_a_second_run_is_refused_while_the_holder_renews(take, clock, said):
    held = take()
    renew_every_20_seconds(held, clock)
    begin = clock.now
    with pytest.raises(ConfigError, match="in use by process .*choose another --work"):
        take()
    assert clock.now - begin <= 22 and held.is_ours()
    assert len(said) == 1 and said[0].startswith("waiting for process ")


@pytest.mark.parametrize("offset", [-86400.0, -100.0, 100.0, 86400.0])
def test_a_holder_that_renews_keeps_it_however_wrong_the_clocks(
    take, clock, tmp_path, offset
):
    held = take()
    renew_every_20_seconds(held, clock)
    clock._offset = offset  # of the one who comes; the holder renews by this one too
    wrong = stored(tmp_path)
    write_json(tmp_path / "lease.json", wrong | {"renewed": clock.time() - 2 * offset})
    with pytest.raises(ConfigError, match="in use by process"):
        take()
    assert held.is_ours()


def test_a_dead_holder_is_replaced_after_two_minutes(take, clock, said):
    first = take()
    clock.sleep(10.0)  # then it is killed
    begin = clock.now
    second = take()
    assert second.is_ours() and 110 <= clock.now - begin <= 130
    # Killed long ago: it is only watched for longer than it would need to renew.
    clock.sleep(3600.0)
    begin = clock.now
    third = take()
    assert third.is_ours() and 30 <= clock.now - begin <= 40
    del said[:]
    assert first.renew() is False
    (line,) = said
    assert "was taken over by process" in line and "it stops" in line
    assert first.renew() is False and len(said) == 1  # said once
    first.release()  # does not take away what is another's
    assert third.is_ours()


def test_of_two_that_take_it_at_once_one_gives_way(take, tmp_path, clock):
    def other():
        Lease(epath.Path(tmp_path), clock=clock, on_lost=print).write()

    clock.at(1.0, other)  # between our write and our second look
    with pytest.raises(ConfigError, match="which was faster"):
        take()


def test_a_lease_that_is_being_written_is_nobodys(take, tmp_path, clock):
    held = take()
    text = (tmp_path / "lease.json").read_text()
    (tmp_path / "lease.json").write_text(text[:20])
    assert held.renew() and held.is_ours()
    # Such a one that nobody ever completes grows old as any other.
    (tmp_path / "lease.json").write_text(text[:20])
    begin = clock.now
    assert take().is_ours() and 120 <= clock.now - begin <= 130


def test_the_thread_renews_and_notices_a_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(lease, "_SETTLE_SECONDS", 0.0)
    is_lost = threading.Event()
    held = take_lease(
        epath.Path(tmp_path), say=print, on_lost=lambda line: is_lost.set()
    )
    first = stored(tmp_path)["renewed"]
    for _ in range(200):
        if stored(tmp_path)["renewed"] > first:
            break
        is_lost.wait(0.02)
    assert stored(tmp_path)["renewed"] > first and not is_lost.is_set()
    while not is_lost.is_set():  # the thread may write at the same moment
        write_json(tmp_path / "lease.json", {"owner": "another"})
        is_lost.wait(0.05)
    held.release()
    assert stored(tmp_path)["owner"] == "another"
