"""The experiment of window cascades: its numbers, its rows, its runs."""

import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from scipy.special import logsumexp

from ensjax import cli
from ensjax.experiment import ConfigError, load_config
from ensjax.experiment.configs import load_module
from ensjax.experiment.past_run import open_past_run
from ensjax.experiment.runner import RunOptions, run_and_report
from ensjax.provenance import LeakageError
from ensjax.train.replay import replay_member
from ensjax.train.stored import read_member

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "window_cascade.py")
experiment = load_module(ROOT / "experiments" / "window_cascade.py", "experiment")
measures, data = experiment.measures, experiment.data
verdicts = experiment.verdicts


def config_of(spec, *overrides):
    return load_config(spec, overrides)[1]


def random_pairs(num_seeds=2, num_rows=200, num_classes=4, macs=100.0, seed=0):
    """Logits of pairs that know something, and OOD rows that they know less of."""
    rng = np.random.default_rng(seed)

    def part(knows, rows=num_rows):
        truth = knows * rng.normal(size=(num_seeds, 1, rows, num_classes))
        logits = truth + rng.normal(size=(num_seeds, 2, rows, num_classes))
        noisy = truth[:, 0] + 0.5 * rng.gumbel(size=truth[:, 0].shape)
        return logits.astype(np.float32), noisy.argmax(-1).astype(np.int32)

    validation, validation_labels = part(2.0)
    test, test_labels = part(2.0)
    ood, _ = part(0.7, num_rows // 2)
    return data.Logits(validation, test, ood, validation_labels, test_labels, macs)


# Numbers


def loop_of_order(logits, seed, order, config):
    """All metrics of all systems but "capacity", from the definitions, in float64."""

    def read(values):
        z = values[seed, list(order)].astype(np.float64)
        z = z - logsumexp(z, axis=-1, keepdims=True)
        stages = [z[0], logsumexp(z, axis=0) - np.log(2)]
        odds = [
            s.max(-1) - logsumexp(np.sort(s, axis=-1)[:, :-1], axis=-1) for s in stages
        ]
        return [s.argmax(-1) for s in stages], odds

    def cov(sure, wrong, level):
        order = np.argsort(-sure)
        risk = np.cumsum(wrong[order]) / np.arange(1, len(sure) + 1)
        reached = np.flatnonzero(risk <= level + 1e-9)
        reached = reached[reached >= 20]
        assert reached.size
        return sure[order][reached[-1]], (reached[-1] + 1) / len(sure)

    def at_coverage(sure, wrong, level, weight=None):
        order = np.argsort(-sure)
        weight = np.ones(len(sure)) if weight is None else weight
        kept = np.cumsum(weight[order])
        first = np.flatnonzero(kept >= level * kept[-1] - 1e-9)[0]
        risk = (wrong * weight)[order][: first + 1].sum() / kept[first]
        return sure[order][first], risk

    def window(sure, tau, weight=None):
        weight = np.ones(len(sure)) if weight is None else weight
        share = np.average(sure <= tau, weights=weight)
        order = np.argsort(sure)
        risen = np.cumsum(weight[order]) / weight.sum()
        ends = np.clip([share - 0.1, share + 0.1], 0, 1)
        return [sure[order][np.flatnonzero(risen >= q - 1e-6)[0]] for q in ends]

    (v_choice, _), (v_sure, _) = read(logits.validation)
    v_wrong = v_choice != logits.validation_labels[seed]
    choices, sures = read(logits.test)
    wrongs = [c != logits.test_labels[seed] for c in choices]
    _, ood_sures = read(logits.ood)
    mixture = np.concatenate([sures[0], ood_sures[0]])
    weight = np.repeat([1.0, len(sures[0]) / len(ood_sures[0])], [200, 100])
    middle = at_coverage(mixture, mixture, 0.5, weight)[0]
    windows = {
        "cov": window(v_sure, cov(v_sure, v_wrong, config.risk)[0]),
        "risk": window(v_sure, at_coverage(v_sure, v_wrong, 0.8)[0]),
        "fpr80": window(v_sure, at_coverage(v_sure, v_wrong, 0.8)[0]),
        "fpr95": window(v_sure, at_coverage(v_sure, v_wrong, 0.95)[0]),
        "scod": window(mixture, middle, weight),
    }
    windows["accuracy"] = windows["cov"]
    single = (-np.inf, np.sort(v_sure)[int(0.2 * len(v_sure)) - 1])
    found = {}
    for metric in measures.METRICS:
        ends = {
            "single": (np.inf, np.inf),
            "window": windows[metric],
            "cov window": windows["cov"],
            "threshold": single,
            "ensemble": (-np.inf, np.inf),
        }
        for system, (low, high) in ends.items():
            on, ood_on = ((low < s[0]) & (s[0] < high) for s in (sures, ood_sures))
            sure, wrong = np.where(on, sures[1], sures[0]), np.where(on, *wrongs[::-1])
            ood = np.where(ood_on, ood_sures[1], ood_sures[0])
            both = np.concatenate([sure, ood])
            errors = np.concatenate([wrong, np.ones(len(ood))])
            tau = {m: np.sort(sure)[::-1][int(m * 200) - 1] for m in (0.8, 0.95)}
            value = {
                "accuracy": lambda: 1 - wrong.mean(),  # noqa: B023
                "cov": lambda: cov(sure, wrong, config.risk)[1],  # noqa: B023
                "risk": lambda: at_coverage(sure, wrong, 0.8)[1],  # noqa: B023
                "fpr80": lambda: (ood >= tau[0.8]).mean(),  # noqa: B023
                "fpr95": lambda: (ood >= tau[0.95]).mean(),  # noqa: B023
                "scod": lambda: at_coverage(both, errors, 0.5, weight)[1],  # noqa: B023
            }[metric]()
            share = on.mean()
            if metric in measures.OOD_METRICS:
                share = (on.mean() + ood_on.mean()) / 2
            found[metric, system] = np.array([value, share])
    return found


@pytest.mark.slow
def test_every_metric_of_every_system_equals_a_numpy_loop():
    config = config_of(
        f"{CONFIG}:smoke", ("risk", "0.25"), ("capacity_batch_size", "64")
    )
    logits = random_pairs()
    found = measures.measure_size(config, logits)
    for seed in range(2):
        orders = [loop_of_order(logits, seed, o, config) for o in ((0, 1), (1, 0))]
        for metric, system in orders[0]:
            at = seed, measures.SYSTEMS.index(system)
            actual = found[metric][at], found[f"share/{metric}"][at]
            expected = (orders[0][metric, system] + orders[1][metric, system]) / 2
            np.testing.assert_allclose(
                actual, expected, rtol=1e-5, atol=1e-6, err_msg=f"{metric} {system}"
            )
    # 13 of 64 in three whole batches; the other 8 rows go by the window.
    share = found["share/accuracy"][:, measures.SYSTEMS.index("capacity")]
    assert (abs(share - 39 / 200) <= 8 / 200 + 1e-6).all()


def results_of(gains, macs=(100.0, 200.0, 400.0)):
    """Results in which the window gains so much in every metric, at 1.2 x the cost."""
    config = config_of(f"{CONFIG}:claims")
    with config.ignore_type():
        config.widths = (1, 2, 3)
        config.shown_size = config.compared_size = 1
    arrays = {"macs": np.array(macs)}
    rng = np.random.default_rng(0)
    seeds = rng.normal(scale=1e-3, size=(1, 6, 1))
    for metric in measures.METRICS:
        sign = 1 if metric in verdicts.HIGHER else -1
        single = 0.5 + sign * 0.1 * np.arange(3.0)[:, None, None] + seeds
        gain = np.array([gains.get(s, 0.0) for s in measures.SYSTEMS])
        arrays[metric] = single + sign * gain + 1e-5 * rng.normal(size=(3, 6, 6))
        shares = dict(single=0.0, ensemble=1.0)
        share = np.array([shares.get(s, 0.2) for s in measures.SYSTEMS])
        arrays[f"share/{metric}"] = np.broadcast_to(share, (3, 6, 6))
    for way in ("capacity", "compacted"):
        arrays |= {f"one/{way}_minus_dense": 1e-7, f"one/{way}_other_exits": 0.0}
    return config, verdicts.Results(config, arrays)


def test_claims_follow_from_what_is_measured():
    gain = dict(window=0.05, threshold=0.02, ensemble=0.06)
    config, results = results_of(gain)
    # A doubling of the MACs gains 0.1, so that 1.2 times as many gain 0.0263.
    over = 0.05 - 0.1 * np.log2(1.2)
    np.testing.assert_allclose(results.front_gain("cov", "window"), over, atol=1e-4)
    np.testing.assert_allclose(results.front_gain("risk", "window"), over, atol=1e-4)
    ratio = 1.2 / 2**0.5
    np.testing.assert_allclose(results.cost_ratio(), ratio, rtol=1e-3)
    claims = verdicts.make_claims(config, results)
    letters = [c["name"][:28] for c in claims]
    assert letters == [f"window-early-exit-cascades.{x}" for x in "abcd"]
    assert [c["verdict"] for c in claims[:3]] == ["fails", "holds", "fails"]
    assert claims[2]["measured"] == pytest.approx(ratio, rel=1e-3)
    assert [len(c.get("parts", [0])) for c in claims] == [1, 2, 1, 2]
    checks = {c["name"]: c["pass"] for c in verdicts.make_checks(config, results)}
    assert checks["cov@5 of the full ensemble over the front, points, at its best size"]
    assert checks["gain of the window in cov@5 over that of the ensemble, width 2"]
    worse = verdicts.make_checks(*results_of(gain | dict(window=-0.01)))
    assert sum(c["pass"] for c in worse) < sum(checks.values())


# Rows


def test_no_seed_trains_on_what_it_validates_or_tests_and_seeds_differ():
    config = config_of(f"{CONFIG}:small")
    splits = [data.split_rows(config, seed) for seed in range(3)]
    for rows in splits:
        assert [len(part) for part in rows] == [897, 300, 600]
        assert len(np.unique(np.concatenate(rows))) == 1797
    assert not np.array_equal(splits[0].test, splits[1].test)
    data.check_leakage(data.provenances(config, splits))
    leaking = splits[0]._replace(train=splits[0].validation)
    with pytest.raises(LeakageError, match="cannot be fitted on rows"):
        data.check_leakage(data.provenances(config, [leaking]))


def test_what_is_fitted_carries_the_rows_of_its_seed():
    config = config_of(f"{CONFIG}:small", ("data.num_copies", "1"))
    splits = [data.split_rows(config, seed) for seed in range(2)]
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(2, 2, rows, 10)) for rows in (300, 600, 600)]
    labels = [rng.integers(0, 10, (2, rows)) for rows in (300, 600)]
    good = data.Logits(*parts, *labels, 1.0, data.provenances(config, splits))
    measures.check_rows(good)
    for leaking, message in (
        (splits[1]._replace(train=splits[1].validation), "member '0 of seed 1'"),
        (splits[1]._replace(validation=splits[1].test[:300]), "kept for the test"),
        (splits[1]._replace(train=splits[1].test), "a score cannot be of rows"),
    ):
        bad = data.provenances(config, [splits[0], leaking])
        with pytest.raises(LeakageError, match=message):
            measures.measure_size(config, good._replace(provenance=bad))
    other = data.provenances(config, [splits[0]] * 2)
    with pytest.raises(ValueError, match="provenance must be of"):
        measures.check_rows(good._replace(validation=parts[1], provenance=other))


def test_inputs_are_noisy_copies_and_outliers_are_turned_or_blended():
    config = config_of(f"{CONFIG}:small", ("data.noise_sigma", "0.0"))
    splits = [data.split_rows(config, seed) for seed in range(2)]
    inputs, targets = data.make_inputs(config, splits)
    images, labels = data.digits()
    assert inputs["ood"].shape == inputs["test"].shape == (2, 6000, 8, 8, 1)
    np.testing.assert_array_equal(inputs["test"][1, 600:1200], images[splits[1].test])
    np.testing.assert_array_equal(targets["test"][1, :600], labels[splits[1].test])
    turned = inputs["ood"][0, 5, :, :, 0]
    np.testing.assert_array_equal(turned, np.rot90(images[splits[0].test[5], ..., 0]))
    partner = 2 * inputs["ood"][0, 400] - images[splits[0].test[400]]
    found = np.flatnonzero((abs(images - partner) < 1e-5).all(axis=(1, 2, 3)))
    assert labels[found[0]] != labels[splits[0].test[400]]
    assert set(found) & set(splits[0].test)
    config.data.noise_sigma = 0.35
    noisy, _ = data.make_inputs(config, splits)
    noise = noisy["test"] - inputs["test"]
    assert noise.std() == pytest.approx(0.35, rel=0.01)  # of 768,000 draws
    assert (
        abs(np.corrcoef(noise[0, :600].ravel(), noise[0, 600:1200].ravel())[0, 1])
        < 0.02
    )


# Configs


@pytest.mark.parametrize("preset", ["smoke", "small", "claims"])
def test_presets_are_valid(preset):
    experiment.validate(config_of(f"{CONFIG}:{preset}"))
    if preset == "claims":
        assert config_of(f"{CONFIG}:claims").num_seeds >= 5


MISTAKES = {
    "confidence=sure": "config.confidence is one of energy, max_logit",
    "window_width=0.5": "config.window_width must be a number above 0 and below 0.5",
    "tpr=(0.95, 0.8)": "config.tpr holds two rates, rising",
    "coverage=0.0": "config.coverage must be a number above 0 and at most 1",
    "widths=(16, 8)": "config.widths must rise",
    "widths=(8,)": "holds at least two sizes",
    "shown_size=2": "config.shown_size must be from 0 to 1",
    "num_seeds=0": "config.num_seeds must be at least 1; got 0",
    "data.num_test=1700": "must leave rows to train on",
    "data.num_test=10": "config.data.num_test must be at least 20",
    "total_steps=61 steps_per_call=0": "config: steps_per_call",
    "optimizer.learning_rate=0.0": "config.optimizer.learning_rate must be a number",
    "mesh.model=2": "Use more of member or data",
    "seed=-1": "seed must be from 0 to",
    "cached.files=('a.npz','b.npz')": "files, names and macs must be as many",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(mistake, tmp_path, capfd):
    settings = mistake.split() if "steps" in mistake else [mistake]
    overrides = [tuple(setting.split("=", 1)) for setting in settings]
    workdir = tmp_path / "runs" / "w"
    options = RunOptions(f"{CONFIG}:smoke", workdir=str(workdir), overrides=overrides)
    assert run_and_report(options) == 2
    output = capfd.readouterr()
    assert output.err.startswith("ensjax: ") and output.err.count("\n") == 1
    assert MISTAKES[mistake] in output.err and output.out == ""
    assert not workdir.parent.exists()


def test_a_job_has_a_stack_of_each_width_and_cached_logits_have_none():
    config = config_of(f"{CONFIG}:smoke")
    job = experiment.training_job(config)
    assert len(job.stacks) == len(config.widths) and job.stage == "members"
    assert job.options["weights"].shape == (len(job.member_ids), 1_797)
    last = job.stack_of(job.member_ids[-1])
    assert last.make_model.args == (config.widths[-1],)
    with pytest.raises(ConfigError, match="trains nothing: it reads cached logits"):
        experiment.training_job(config_of(f"{CONFIG}:paper"))


# Cached logits


def write_cached(folder, sizes=5, num_pairs=1, **changes):
    """Files of the documented format, which get better with their number."""
    paths = []
    for size in range(sizes):
        pairs = random_pairs(num_pairs, seed=size)
        arrays = {
            part: getattr(pairs, part).reshape(2 * num_pairs, -1, 4)
            for part in ("validation", "test", "ood")
        }
        arrays |= {
            f"{p}_labels": getattr(pairs, f"{p}_labels")[0] for p in data.PARTS[:2]
        }
        arrays |= changes
        path = folder / f"b{size}.npz"
        np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
        paths.append(str(path))
    return paths


def paper_config(paths):
    return config_of(f"{CONFIG}:paper", ("cached.files", str(tuple(paths))))


def test_the_paper_preset_says_what_to_get():
    with pytest.raises(ConfigError, match=r"cached.files\[0\] is the path .* npz file"):
        experiment.validate(config_of(f"{CONFIG}:paper"))


def test_cached_logits_are_read_as_pairs(tmp_path):
    config = paper_config(write_cached(tmp_path, num_pairs=2))
    experiment.validate(config)
    logits = data.read_cached(config, 3)
    assert logits.test.shape == (2, 2, 200, 4) and logits.ood.shape == (2, 2, 100, 4)
    assert logits.test_labels.shape == (2, 200) and logits.macs == 1.9e9
    with np.load(tmp_path / "b3.npz") as file:
        np.testing.assert_array_equal(logits.validation[1, 0], file["validation"][2])


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(ood=None), "lacks ood"),
        (dict(test=np.zeros((2, 5), np.float32)), r"test must be floats \[member, row"),
        (dict(test=np.zeros((1, 200, 4))), "at least two members"),
        (dict(test_labels=np.zeros(3, int)), "test_labels must be integers"),
        (dict(ood=np.zeros((2, 9, 5))), "disagree on members or classes"),
    ],
)
def test_files_of_another_format_are_refused(changes, message, tmp_path):
    config = paper_config(write_cached(tmp_path, **changes))
    with pytest.raises(ConfigError, match=message):
        experiment.validate(config)


# Runs


def run(spec, workdir, overrides=()):
    options = RunOptions(spec, workdir=str(workdir), overrides=list(overrides))
    assert run_and_report(options) == 0
    return json.loads((workdir / "results.json").read_text())


@pytest.mark.slow
def test_the_paper_preset_runs_on_cached_logits(tmp_path):
    paths = write_cached(tmp_path)
    results = run(
        f"{CONFIG}:paper", tmp_path / "w", [("cached.files", str(tuple(paths)))]
    )
    assert {c["verdict"] for c in results["claims"]} == {"undecided"}  # one pair
    assert {c["scale"] for c in results["claims"]} == {"full"}
    ways = {c["name"][:14]: c["pass"] for c in results["checks"][-2:]}
    assert ways == {"fixed capacity": True, "compacted minu": True}
    assert results["scalars"]["macs_efficientnet_b4"] == 4.5e9


@pytest.mark.slow
def test_a_run_ends_in_a_report_and_one_that_was_killed_goes_on(tmp_path, capfd):
    results = run(f"{CONFIG}:smoke", tmp_path)
    text = (tmp_path / "report.html").read_text()
    figures = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert figures == {"pareto", "over_front", "risk_coverage", "ood"}
    assert text.count("data:image/png") == len(figures)
    assert not [name for name in results["scalars"] if "second" in name]
    assert all(np.isfinite(list(results["scalars"].values())))
    ways = [c for c in results["checks"] if "minus dense" in c["name"]]
    assert len(ways) == 2 and all(c["pass"] for c in ways)
    # As if it had been killed before the measures were stored.
    (tmp_path / "results.json").unlink()
    (tmp_path / "stages" / "measures.npz").unlink()
    capfd.readouterr()
    again = run(f"{CONFIG}:smoke", tmp_path)
    assert "step 30/60" not in capfd.readouterr().out  # it trains no step again
    assert again["scalars"] == results["scalars"]
    # Members 2 and 3 are of the second stack.
    assert cli.main(["export", str(tmp_path), "--member", "3"]) == 0
    place = (tmp_path / "exports" / "member-3").absolute()
    exported = ocp.StandardCheckpointer().restore(place)
    widths = {x.shape[-1] for x in jax.tree.leaves(exported) if np.ndim(x) == 1}
    assert widths == {32, 10}
    capfd.readouterr()
    mixed = ["--member", "0", "--member", "3", "--format", "ensemble"]
    assert cli.main(["export", str(tmp_path), *mixed]) == 2
    assert "are of different architectures" in capfd.readouterr().err
    past = open_past_run(tmp_path)
    stored = read_member(past.checkpoints, 3)
    replayed = replay_member(past.job, stored, 3, progress=False)
    assert replayed.worst()[1] < 1e-3
