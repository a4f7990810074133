"""The benchmark of what a long run costs beside its steps: it measures what it says."""

import dataclasses
import json
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

import ensjax
from ensjax.experiment.configs import load_module

bench = load_module(
    Path(__file__).parents[2] / "experiments" / "bench_scale.py", "bench"
)
timing, memory, processes = bench.timing, bench.memory, bench.processes
SMALL = dataclasses.replace(
    timing.alternatives.WORKLOADS["mlp-small"], num_examples=40, steps_per_call=5
)


def test_a_ratio_of_medians_has_the_interval_of_its_repetitions():
    assert timing.ratio_of([3.0] * 5, [2.0] * 5) == (1.5, (1.5, 1.5))
    rng = np.random.default_rng(0)
    base = 1 + 0.1 * rng.normal(size=400)
    values = 1.5 + 0.1 * rng.normal(size=400)
    ratio, (low, high) = timing.ratio_of(values, base)
    assert ratio == pytest.approx(np.median(values) / np.median(base))
    # The standard error of a median of 400 normal draws is 1.25 sd / 20.
    error = 1.25 * 0.1 / 20 * np.hypot(1, 1.5)
    assert low < 1.5 < high
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.3)
    few = timing.ratio_of(values[:10], base[:10])[1]
    assert few[1] - few[0] > 2 * (high - low)


def test_a_verdict_needs_the_whole_interval_on_one_side():
    assert timing.verdict((0.99, 1.005), 1.01) == "ok"
    assert timing.verdict((0.99, 1.02), 1.01) == "undecided"
    assert timing.verdict((1.011, 1.02), 1.01) == "DEFECT"


@pytest.mark.parametrize("members", [16, 64])
def test_the_guard_is_every_policy_over_none(monkeypatch, members):
    pace = {"off": 100.0, "freeze": 99.5, "rollback": 98.0, "reseed": 50.0}
    asked = []

    def fit(ensemble, data, *, steps, health, **options):
        if isinstance(health, ensjax.Health):
            assert health.make_model is not None
            health = health.policy
        asked.append((health, steps))
        return ensemble, types.SimpleNamespace(
            steps_per_second=pace[health], compile_seconds=1.5
        )

    monkeypatch.setattr(ensjax, "fit", fit)
    monkeypatch.setattr(ensjax.Ensemble, "init", lambda *_, **__: None)
    rows = timing.measure_guard("mlp-small", members, repetitions=3)
    assert [row["ratio"] for row in rows] == pytest.approx([100 / 99.5, 100 / 98, 2])
    if members == 64:  # the size that the target is about
        assert [row["verdict"] for row in rows] == ["ok", "DEFECT", "DEFECT"]
    else:
        assert not any("verdict" in row for row in rows)
    assert len({row["name"] for row in rows}) == 3
    # All fits of the repetitions are as long, and each way takes its turn.
    repeated = asked[-12:]
    assert len({steps for _, steps in repeated}) == 1
    assert sorted(health for health, _ in repeated) == sorted([*pace] * 3)
    assert [health for health, _ in repeated[4:8]] == [*pace][1:] + ["off"]
    bench.make_table(rows)


@pytest.mark.slow
def test_every_policy_trains(monkeypatch):
    monkeypatch.setitem(timing.alternatives.WORKLOADS, "tiny", SMALL)
    monkeypatch.setattr(timing, "MIN_SECONDS", 1e-3)
    rows = timing.measure_guard("tiny", 2, repetitions=2)
    assert [row["name"].split()[2] for row in rows] == [*timing.POLICIES]
    for row in rows:
        assert row["interval"][0] <= row["ratio"] <= row["interval"][1]
        assert min(map(min, row["measurements"].values())) > 0


class _SlowCheckpoints:
    """Blocks for 0.1 s, and writes for another 0.3 s."""

    def __init__(self):
        self._written = threading.Event()

    def save(self, step, state, meta):
        time.sleep(0.1)
        threading.Timer(0.3, self._written.set).start()

    def wait(self):
        self._written.wait()


def test_a_save_is_timed_until_the_first_call_behind_it():
    run = types.SimpleNamespace(run=lambda: time.sleep(0.02), states=lambda: None)
    found = timing._save_once(_SlowCheckpoints(), 0, run)
    assert 0.1 <= found["blocked"] < 0.3
    assert 0.4 <= found["saving"] <= found["seconds"]
    assert 2 <= found["calls"] <= 16  # of 0.02 s in 0.3 s, on a busy machine fewer
    assert found["seconds"] >= found["blocked"] + 0.02 * found["calls"]


@pytest.mark.slow
def test_saves_are_measured_with_fit_and_with_a_save_in_flight(monkeypatch):
    monkeypatch.setitem(timing.SAVED, "tiny", (SMALL, 2, 5))
    monkeypatch.setattr(timing, "MAIN_JOB", "tiny")
    ticks = []
    with_saves, in_flight = timing.measure_saves(
        "tiny", repetitions=2, advance=lambda: ticks.append(1)
    )
    assert len(ticks) == 4
    for row in (with_saves, in_flight):
        assert row["members"] == 2 and row["target"] == 1.05
        assert row["verdict"] in ("ok", "undecided", "DEFECT")
        assert row["interval"][0] <= row["ratio"] <= row["interval"][1]
        for values in row["measurements"].values():
            assert len(values) == 2 and min(values) > 0
    numbers = 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10
    # Weights and both moments of two members, and a few counters.
    assert in_flight["checkpoint_bytes"] == pytest.approx(2 * 3 * 4 * numbers, rel=0.01)
    assert {with_saves["name"], in_flight["name"]} == {
        "saves tiny M=2",
        "in flight tiny M=2",
    }
    bench.make_table([with_saves, in_flight])


@pytest.mark.parametrize("first", [1, 4, 64])
@pytest.mark.parametrize("each, fixed", [(7, 100), (1_000, 0), (90, 7_000)])
def test_the_search_finds_the_most_members_that_fit(first, each, fixed):
    looked = []

    def bytes_of(count):
        looked.append(count)
        return fixed + each * count

    found, size = memory.most_that_fit(bytes_of, 10_000, first=first)
    most = (10_000 - fixed) // each
    assert size == fixed + each * found <= 10_000
    assert found == most or size >= 0.98 * 10_000
    assert len(looked) == len(set(looked)) <= memory.MOST_COMPILATIONS


def test_nothing_fits_where_one_member_is_too_large():
    assert memory.most_that_fit(lambda count: 20 + count, 10, first=4) == (0, 0)


@pytest.mark.slow
def test_members_in_a_limit_are_those_of_the_compiled_step(monkeypatch):
    limit = 4 * 1024**2
    monkeypatch.setattr(memory, "GIB", limit)
    monkeypatch.setitem(memory.alternatives.WORKLOADS, "tiny", SMALL)
    rows = {row["name"]: row for row in memory.measure_memory("tiny")}
    assert len(rows) == 3
    weights = 3 * 4 * 8_970  # and both moments
    for row in rows.values():
        assert 0.9 * limit < row["bytes"] <= limit
        assert 0 < row["members"] < limit / weights
    row = rows["members per GiB tiny block=all"]
    assert memory.step_bytes(SMALL, row["members"], None) == row["bytes"]


@pytest.mark.slow
def test_many_members_run_in_a_process_of_their_own():
    [row] = processes.measure_many(6, 30.0, steps=200)
    assert row["members"] == 6 and "verdict" not in row  # fewer steps than the target's
    assert 0 < row["training_seconds"] < row["seconds"] < row["process_seconds"]
    assert row["members_per_second"] == pytest.approx(6 / row["training_seconds"])
    assert row["peak_bytes"] >= row["peak_bytes_before"] > 1e8
    assert row["program_bytes_per_device"] > 3 * 4 * 3 * 4_810
    assert row["mean_best_accuracy"] > 0.3 and row["not_finite"] == 0
    bench.make_table([row])


@pytest.mark.slow
def test_a_warm_start_finds_what_another_start_compiled():
    [row] = processes.measure_start("deep_ensemble_digits:smoke", repetitions=1)
    assert [len(values) for values in row["measurements"].values()] == [1, 1]
    assert int(row["note"].split(" programs kept")[0].split()[-1]) > 0
    bench.make_table([row])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--rows", "guard,sav"], "--rows takes start, many, guard, save, memory"),
        (["--repetitions", "0"], "must be at least 1"),
    ],
)
def test_a_mistaken_option_is_named(arguments, words, capsys):
    with pytest.raises(SystemExit) as end:
        bench.main(arguments)
    assert end.value.code == 2
    assert words in capsys.readouterr().err


def test_all_groups_end_in_one_table_and_one_file(tmp_path, capsys, monkeypatch):
    def rows_of(group, ratio):
        def measure(*arguments, advance=None, **options):
            about = timing._about(group, SMALL, 4)
            values = {"ms per step": [ratio, ratio], "members per s": [2.0, 2.0]}
            name = f"{group} {len(arguments)}"
            return [about | {"name": name, "ratio": ratio, "interval": [1.0, 2.0]}
                    | {"what": "a [b] / c", "measurements": values}]  # fmt: skip

        return measure

    for module, name in (
        (timing, "guard"),
        (timing, "saves"),
        (memory, "memory"),
        (processes, "start"),
        (processes, "many"),
    ):
        monkeypatch.setattr(module, f"measure_{name}", rows_of(name, 1.25))
    monkeypatch.setenv("COLUMNS", "160")
    path = tmp_path / "scale.json"
    assert bench.main(["--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "1.250 [1.000, 2.000]" in printed and "a [b] / c" in printed
    report = json.loads(path.read_text())
    assert report["suite"] == "scale" and report["versions"]["num_devices"] > 0
    groups = [row["group"] for row in report["rows"]]
    assert groups == sorted(groups, key=["start", "many", *groups].index)
    expected = dict(guard=4, saves=2, start=2, memory=5, many=2)
    assert {group: groups.count(group) for group in groups} == expected
    _, measurements = bench.measurements_of(report["rows"][0])
    assert measurements["ms per step"].values == (1.25, 1.25)
    assert measurements["members per s"].higher_is_better
