"""The experiment on aggregates of quantile regressions: parts, mistakes and a run."""

import dataclasses
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ensjax import combine
from ensjax.experiment import ConfigError, load_config
from ensjax.experiment.configs import load_module
from ensjax.experiment.runner import RunOptions, run_and_report
from ensjax.provenance import LeakageError, Provenance

ROOT = Path(__file__).parents[2]
SPEC = str(ROOT / "configs" / "quantile_aggregation.py")
experiment = load_module(ROOT / "experiments" / "quantile_aggregation.py", "experiment")
base, conformal = experiment.base, experiment.measures.conformal


def config_of(preset="smoke", *overrides):
    return load_config(f"{SPEC}:{preset}", overrides)[1]


def test_forest_quantiles_are_those_of_the_leaves_rows():
    rng = np.random.default_rng(0)
    x, new_x = rng.normal(size=(40, 3)), rng.normal(size=(6, 3))
    y = x[:, 0] + rng.normal(size=40)
    config = config_of("smoke")
    found = base.make_fits(config, 3)["forest"](x, y)(new_x)
    forest = base.RandomForestRegressor(
        n_estimators=config.base.num_trees,
        min_samples_leaf=config.base.min_leaf,
        random_state=3,
    ).fit(x, y)
    leaves, new_leaves = forest.apply(x), forest.apply(new_x)
    for i in range(6):
        weight = np.zeros(40)
        for tree in range(config.base.num_trees):
            same = leaves[:, tree] == new_leaves[i, tree]
            weight += same / same.sum() / config.base.num_trees
        expected = np.quantile(
            y, base.level_values(config), weights=weight, method="inverted_cdf"
        )
        np.testing.assert_allclose(found[i], expected)


def test_conformal_bands_equal_a_loop_over_rows():
    rng = np.random.default_rng(1)
    levels, folds = np.array([0.1, 0.3, 0.5, 0.7, 0.9]), 3
    fold = np.arange(30) % folds
    train = np.sort(rng.normal(size=(folds, 30, 5)), axis=-1)
    test = np.sort(rng.normal(size=(folds, 4, 5)), axis=-1)
    targets = 2 * rng.normal(size=30)
    found = conformal.bands(train, test, targets, fold, levels)
    for k in (0, 1):  # alpha is 0.2 and 0.6
        low = np.array([train[fold[i], i, k] for i in range(30)])
        high = np.array([train[fold[i], i, -1 - k] for i in range(30)])
        scores = np.maximum(low - targets, targets - high)
        ten = sorted(scores[fold == 0])  # ranks of 11 rows, the new one among them
        moved = ten[{0: 9, 1: 5}[k] - 1]
        lower, upper = found["cqr"]
        np.testing.assert_allclose(
            lower[:, k], np.minimum(*_moved(test, k, moved)), rtol=1e-5
        )
        np.testing.assert_allclose(
            upper[:, k], np.maximum(*_moved(test, k, moved)), rtol=1e-5
        )
        for row in range(4):
            lows = sorted(test[fold[i], row, k] - scores[i] for i in range(30))
            highs = sorted(test[fold[i], row, -1 - k] + scores[i] for i in range(30))
            rank = {0: 25, 1: 13}[k]  # ceil(31 (1 - alpha))
            ends = sorted((lows[30 - rank], highs[rank - 1]))
            assert found["cv_plus"][0][row, k] == pytest.approx(ends[0], rel=1e-5)
            assert found["cv_plus"][1][row, k] == pytest.approx(ends[1], rel=1e-5)


def _moved(test, k, moved):
    return test[0, :, k] - moved, test[0, :, -1 - k] + moved


def test_the_conformal_rows_are_seen_by_nothing_that_they_calibrate():
    config = config_of("smoke")
    (x, y) = experiment.rows.load_tables(config)["diabetes"]
    split = experiment.rows.split_rows(config, "diabetes", x, y, 0)
    parts = [split.rows[part] for part in experiment.rows.PARTS]
    assert [len(part) for part in parts] == [272, 60, 110]
    assert len(np.unique(np.concatenate(parts))) == 442
    assert np.bincount(split.fold).tolist() == [55, 55, 54, 54, 54]
    assert abs(split.y["train"].std() - 1) < 1e-9


def test_what_is_fitted_carries_the_rows_of_its_split():
    config = config_of("smoke")
    (x, y) = experiment.rows.load_tables(config)["diabetes"]
    split = experiment.rows.split_rows(config, "diabetes", x, y, 0)
    levels = experiment.base.level_values(config)
    said = {
        part: np.zeros((1, 2, len(ids), len(levels)), np.float32)
        for part, ids in split.rows.items()
    }
    made = experiment.training.make_rows(config, [split], said)
    assert made["train"]["quantiles"].shape == (272, 1, 2, len(levels))
    for part, ids, message in (
        ("train", split.rows["test"][:60], "cannot be fitted on rows"),
        ("validation", split.rows["train"][:60], "member 'member 0' .*was trained"),
        ("validation", split.rows["test"][:60], "which are kept for the test"),
        ("test", split.rows["train"][:110], "which are kept for the test"),
    ):
        bad = dataclasses.replace(split, rows=split.rows | {part: ids})
        short = said | {part: said[part][:, :, : len(ids)]}
        with pytest.raises(LeakageError, match=message):
            experiment.training.make_rows(config, [bad], short)
    with pytest.raises(ValueError, match="provenance must be of"):
        bad = said | {"train": said["test"]}
        experiment.training.make_rows(config, [split], bad)


def test_bands_are_refused_where_they_would_be_tested_on_their_own_rows():
    levels, fold = np.array([0.1, 0.5, 0.9]), np.arange(12) % 3
    train, test = np.zeros((3, 12, 3)), np.zeros((3, 4, 3))
    about = Provenance("x", np.arange(12))
    for rows in ([0, 20, 21, 22], [1, 20, 21, 22]):  # the first of the split steps too
        new = Provenance("x", np.array(rows), part="test")
        with pytest.raises(LeakageError, match=f"fitted on row {rows[0]} of 'x'"):
            conformal.bands(
                train,
                test,
                np.zeros(12),
                fold,
                levels,
                provenance=about,
                test_provenance=new,
            )


def test_the_two_regimes_are_as_described():
    config = config_of("smoke", ("two_regimes.num_train", "512"))
    split, known, truth = experiment.regimes.make_split(config, 0)
    left = split.x["test"][:, 0] < 0
    np.testing.assert_array_equal(known["test"][0][left], truth[left])
    np.testing.assert_array_equal(known["test"][1][~left], truth[~left])
    levels = base.level_values(config)
    covered = (split.y["test"][:, None] <= truth).mean(axis=0)
    # Binomial, 1,000 rows: 4 standard errors are at most 0.064.
    np.testing.assert_allclose(covered, levels, atol=0.064)


@pytest.mark.parametrize(
    "override, text",
    [
        (("kinds", "('global_medium',)"), "config.kinds must be different kinds"),
        (("conformal_kinds", "('local_fine',)"), "config.conformal_kinds"),
        (("base_counts", "(1, 2)"), "config.base_counts must hold 5"),
        (("margin", "wide"), "config.margin is one of adapt, single, vec"),
        (("log_every_steps", "30"), "multiple"),
        (("data.test_size", "442"), "config.data, diabetes"),
        (("two_regimes.num_train", "200"), "config.two_regimes.batch_size"),
    ],
)
def test_mistakes_in_the_config_are_named_before_anything_is_written(override, text):
    with pytest.raises(ConfigError, match=text):
        experiment.validate(config_of("smoke", override))


def test_the_paper_preset_says_what_to_get_and_reads_tables(tmp_path):
    with pytest.raises(ConfigError, match="8 of UCI"):
        experiment.validate(config_of("paper"))
    with pytest.raises(ConfigError, match="no file"):
        experiment.validate(config_of("paper", ("data.files", "('yacht.csv',)")))
    table = np.random.default_rng(0).normal(size=(300, 4))
    file = tmp_path / "yacht.csv"
    np.savetxt(file, table, delimiter=",", header="a,b,c,y", comments="")
    config = config_of("paper", ("data.files", f"('{file}',)"))
    experiment.validate(config)
    ((name, (x, y)),) = experiment.rows.load_tables(config).items()
    assert name == "yacht"
    np.testing.assert_allclose(np.column_stack([x, y]), table)
    file.write_text("a,b\n1,2\n3,x\n")
    with pytest.raises(ConfigError, match="yacht.csv"):
        experiment.validate(config)


def test_the_paper_size_of_local_fine_weights_fits_in_blocks_of_levels():
    config = config_of("paper")
    levels = tuple(base.level_values(config).tolist())
    abstract = nnx.eval_shape(
        lambda: combine.AggregatorMember(
            experiment.training._make_aggregator(
                config, "local_fine", 6, levels, 9, nnx.Rngs(params=0, dropout=1)
            )
        )
    )
    graph, params, rest = nnx.split(abstract, nnx.Param, ...)
    rows = {"quantiles": (512, 1, 6, 99), "targets": (512, 1)}
    rows |= {"weight": (512, 1), "x": (512, 1, 9)}
    rows = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in rows.items()}

    def loss(params, rest, rows):
        model = nnx.merge(graph, params, rest, copy=True)
        return combine.quantile_loss(model, rows, None)[0]

    text = jax.jit(jax.grad(loss)).lower(params, rest, rows).as_text()
    shapes = re.findall(r"tensor<([0-9x]+)xf32>", text)
    largest = max(math.prod(map(int, shape.split("x"))) for shape in shapes)
    # The last layer's own size; all weights of the batch would be 4 times as many.
    assert largest == config.model.hidden[-1] * 6 * 99 * 99 < 512 * 6 * 99 * 99


def test_a_plan_is_refused_in_one_sentence():
    with pytest.raises(ConfigError, match="that the run fits before"):
        experiment.training_job(config_of("smoke"))


@pytest.mark.slow
def test_the_smoke_run_ends_in_every_claim_and_resumes_to_the_same(tmp_path):
    def run(folder):
        options = RunOptions(spec=f"{SPEC}:smoke", workdir=str(tmp_path / folder))
        assert run_and_report(options) == 0
        return json.loads((tmp_path / folder / "results.json").read_text())

    results = run("a")
    letters = [claim["name"].split(":")[0][-1] for claim in results["claims"]]
    assert set(letters) == set("abcd")
    passed = {check["name"]: check["pass"] for check in results["checks"]}
    exact = [name for name in passed if "ordering" in name or "raises" in name]
    exact += [name for name in passed if "masked minus absent" in name]
    assert len(exact) == 4 and all(passed[name] for name in exact)
    assert passed["diabetes: one base model, medium: largest difference from it"]
    (tmp_path / "a" / "results.json").unlink()
    (tmp_path / "a" / "stages" / "kinds-diabetes.npz").unlink()
    assert run("a") == results
