"""`ensjax bench emulate`: ways give the same, and the report says what it means."""

import json
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import rich.console

from ensjax import verification
from ensjax.experiment.configs import load_module

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
bench = load_module(EXPERIMENTS / "bench_emulate.py", "bench")
ways = bench.ways


def row(part, seconds, made, **others):
    rates = {way: made[way] / value for way, value in seconds.items()}
    reference = rates[bench.REFERENCE[part]]
    return {
        "part": part,
        "name": "x",
        "seconds": seconds,
        "all_seconds": {way: [v, v] for way, v in seconds.items()},
        "first_seconds": seconds,
        "peak_bytes": dict.fromkeys(seconds, 1_500_000_000),
        "made": made,
        "rates": rates,
        "ratios": {way: reference / rate for way, rate in rates.items()},
        "missing": {},
    } | others


def test_the_table_says_what_ratios_mean():
    ours = {ways.OURS: 2.0, "one by one": 1.0, "lax.map": 2.0}
    made = {ways.OURS: 512, "one by one": 32, "lax.map": 32}
    cost = row("cost", {"emulated": 4.0, "simulated": 1.0}, dict.fromkeys(ways.COST, 8))
    cheap = row("cost", {"emulated": 1.0, "simulated": 20.0}, cost["made"])
    crps = row(
        "crps",
        {ways.OURS: 1.0, "xskillscore": 3.0},
        dict.fromkeys((ways.OURS, "xskillscore"), 2_000_000),
        missing={"scoringrules numba": "numba is not installed"},
    )
    console = rich.console.Console(width=250, record=True)
    console.print(bench.make_table([row("sampling", ours, made), cost, cheap, crps]))
    text = console.export_text()
    assert "8 x the fastest other way, one by one" in text  # 256 a second over 32
    assert "an emulated member costs 4 simulated ones: not below a tenth" in text
    assert "an emulated member costs 0.05 simulated ones: below a tenth" in text
    assert "3 x the fastest other way, xskillscore" in text
    assert "not measured: numba is not installed" in text
    assert "256 [256, 256]" in text and "median [quartiles]" in text
    assert "peak GB" in text and "1.50" in text
    name, measured = bench.measurements_of(cost)
    assert name == "cost x" and measured["emulated"].values == (4.0, 4.0)


def test_a_way_that_gives_something_else_is_not_timed():
    one = np.array([1.0, 2.0])
    assert bench._difference("crps", "xskillscore", one, one) == 0
    with pytest.raises(RuntimeError, match="xskillscore gives something else"):
        bench._difference("crps", "xskillscore", one + 1e-3, one)
    with pytest.raises(RuntimeError, match="differ by 0.03"):
        bench._difference("sampling", "lax.map", one + 0.03, one)
    with pytest.raises(RuntimeError, match="something else"):
        bench._difference("crps", "xskillscore", one * np.nan, one)


@pytest.mark.parametrize(
    "options, words",
    [
        (
            ["--part", "flops"],
            "--part takes sampling, cost, crps, loss, rollout",
        ),
        (["--system", "mars"], "--system takes lorenz96, held_suarez"),
        (["--ways", "R"], "--ways takes ensjax, one by one"),
        (["--size", "3"], "--size is members x values"),
        (["--loss-size", "4"], "--loss-size is members x values"),
        (["--loss-size", "1x4"], "--loss-size has at least 2 members"),
        (["--rollout-size", "8"], "--rollout-size is members x steps"),
        (["--harmonics-size", "4x4"], "--harmonics-size is fields x latitudes, each"),
        (["--sphere-size", "1x9x4"], "--sphere-size has at least 17 latitudes"),
        (["--levels", "1"], "--levels is at least 2"),
        (["--members", "2"], "--members must be at least 8"),
    ],
)
def test_what_cannot_be_run_is_refused(options, words, capsys):
    with pytest.raises(SystemExit):
        bench.main(options)
    assert words in capsys.readouterr().err


def test_ways_of_scoring_give_the_mean_of_the_same_values():
    size = (7, 5, 6)
    forecast, truth = ways.make_forecast(*size)
    wanted = float(verification.crps()(forecast, truth))
    for name, way in ways.CRPS.items():
        try:
            call = way(*size)
        except ImportError as error:
            assert "not installed" in str(error) and name != ways.OURS
            continue
        assert call.made == 7 * 5 * 6
        with jax.numpy_rank_promotion("allow"):  # scoringrules relies on it
            assert call.run() == pytest.approx(wanted, rel=1e-5), name


@pytest.mark.parametrize("members", [2, 5])
def test_ways_of_the_loss_have_the_same_value_and_gradient(members):
    found = {}
    for name, way in ways.LOSS.items():
        try:
            call = way(members, 3, 4)
        except ImportError as error:
            assert "scoringrules" in str(error)
            continue
        assert call.made == members * 12
        with jax.numpy_rank_promotion("allow"):
            found[name] = call.compared(call.run())
    assert len(found) >= 4
    for name, values in found.items():
        assert values.shape == (1 + members * 12,)
        np.testing.assert_allclose(values, found[ways.OURS], atol=2e-5, err_msg=name)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(ways.importlib.util, "find_spec", lambda name: None)
    for name, way in ways.CRPS.items():
        if name != ways.OURS:
            with pytest.raises(ImportError, match="is not installed"):
                way(2, 3)
    with pytest.raises(ImportError, match="dinosaur is not installed"):
        ways.simulated("held_suarez", 4, 8, 8)


def test_ways_of_sampling_give_the_same_members():
    found = {}
    for name, way in ways.SAMPLING.items():
        call = way("lorenz96", 3, 10, 8)
        found[name] = call.compared(call.run())
        assert call.made == (10 if name in (ways.OURS, "loop over steps") else 8)
    for name, values in found.items():
        assert values.shape == (ways.NUM_COMPARED, 16)
        bench._difference("sampling", name, values, found[ways.OURS])
    # The weights are random: another condition or noise would be another sample.
    assert np.abs(found[ways.OURS][0] - found[ways.OURS][1]).max() > 0.1


def test_the_simulator_makes_as_many_members_as_it_says(monkeypatch):
    asked = []

    def forecast_twins(system, states, cases, *, num_members, **options):
        asked.append(num_members)

    trajectories = types.ModuleType("trajectories")
    trajectories.forecast_twins = forecast_twins
    monkeypatch.setitem(sys.modules, "ensjax.emulate.trajectories", trajectories)
    call = ways.simulated("lorenz96", 4, 12, 8)
    call.run()
    assert call.made == 12 and asked == [11]  # and the truth


def test_all_pairs_of_members_are_made_some_values_at_a_time(monkeypatch):
    """Where there is no numba; sizes of the issue would need 20 GB at once."""
    shapes = []
    package = types.ModuleType("xskillscore")

    def crps_ensemble(truth, forecast):
        shapes.append(forecast.shape)
        return verification.crps()(forecast.values.T, truth.values)

    package.crps_ensemble = crps_ensemble
    pytest.importorskip("xarray")
    monkeypatch.setitem(sys.modules, "xskillscore", package)
    for has_numba, expected in ((False, [(8, 5), (8, 5), (4, 5)]), (True, [(20, 5)])):
        here = {"xarray", "xskillscore", "numba"} - {"" if has_numba else "numba"}
        monkeypatch.setattr(
            ways.importlib.util,
            "find_spec",
            lambda name, here=here: name if name in here else None,
        )
        monkeypatch.setattr(ways, "PAIRS_AT_ONCE", 8 * 5**2)
        shapes.clear()
        got = ways.crps_xskillscore(5, 4, 5).run()
        assert shapes == expected
        wanted = verification.crps()(*ways.make_forecast(5, 4, 5))
        assert got == pytest.approx(float(wanted), rel=1e-5)


def test_a_way_is_not_repeated_after_its_seconds_but_once(monkeypatch):
    class Way:
        def __init__(self, part, way, numbers, *, on_all):
            self.took = 10.0 if way == "xskillscore" else 1.0

        def prepare(self):
            answer = {"seconds": 1.0, "made": 5, "compared": [1.0], "peak_bytes": 7}
            return answer | {"compile_seconds": 0.5}

        def seconds(self):
            time.sleep(0.05 if self.took > 1 else 0)
            return self.took

        def close(self):
            pass

    monkeypatch.setattr(bench.clocks, "Way", Way)
    monkeypatch.setattr(bench, "SECONDS_OF_SILENCE", 0.02)
    options = types.SimpleNamespace(
        ways=["xskillscore"], repetitions=4, way_seconds=3.0
    )
    console = rich.console.Console(width=200, record=True)
    found = bench.measure_row("crps", "5", [5], options, console)
    assert found["all_seconds"] == {ways.OURS: [1.0] * 3, "xskillscore": [10.0]}
    assert found["ratios"]["xskillscore"] == 10 and found["peak_bytes"][ways.OURS] == 7
    assert found["compile_seconds"] == {ways.OURS: 0.5, "xskillscore": 0.5}
    assert "xskillscore: for 0 s so far" in console.export_text()


@pytest.mark.slow
def test_the_command_writes_a_report_that_compares_with_itself(tmp_path, capsys):
    path = tmp_path / "emulate.json"
    small = ["--part", "cost,crps", "--system", "lorenz96", "--levels", "3"]
    small += ["--members", "8", "--size", "5x6", "--repetitions", "2"]
    small += ["--ways", "scoringrules numpy", "--json", str(path)]
    assert bench.main(small) == 0
    report = json.loads(path.read_text())
    cost, crps = report["rows"]
    assert cost["weights"] == "random" and cost["made"]["simulated"] == 8
    assert crps["made"][ways.OURS] == 30 and crps["dtype"] == "float32"
    assert all(len(v) == 2 for r in report["rows"] for v in r["all_seconds"].values())
    assert bench.main(["--results", str(path), "--compare", str(path)]) == 0
    assert "0 of" in capsys.readouterr().out


@pytest.mark.parametrize(
    "part, numbers",
    [
        ("rollout", (9, 8)),
        ("harmonics", (8, 8)),
        ("sphere", (2, 17, 3, "spectral")),
        ("sphere", (2, 17, 3, "local")),
    ],
)
def test_ways_of_forecasts_and_of_harmonics_give_the_same(part, numbers):
    found = {}
    for name, way in ways.PARTS[part].items():
        try:
            call = way(*numbers)
        except ImportError as error:
            assert "not installed" in str(error) and name != ways.OURS
            continue
        made = {"rollout": 9 * 8, "harmonics": 8 * 8 * 15, "sphere": 2 * 4}[part]
        assert call.made == made
        with jax.numpy_rank_promotion("allow"):  # s2fft relies on it
            found[name] = call.compared(call.run())
    for name, values in found.items():
        bench._difference(part, name, values, found[ways.OURS])
    assert np.abs(found[ways.OURS]).max() > (0.001 if "local" in numbers else 0.1)
    # Steps do something: the last states are not the first.
    if part == "rollout":
        starts = ways.rollouts._task(9)[3][:8, :8, 0]
        assert np.abs(found[ways.OURS] - starts).max() > 0.1
