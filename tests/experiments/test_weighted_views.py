"""Weighted views: who reads what, encoders that arrive, votes, ABIDE's files, a run."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ensjax
from ensjax import cli, data
from ensjax.experiment import ConfigError, load_config
from ensjax.experiment.configs import load_module
from ensjax.experiment.runner import RunOptions, run_and_report
from ensjax.provenance import LeakageError

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "weighted_views.py")
experiment = load_module(ROOT / "experiments" / "weighted_views.py", "experiment")
models, stacks, votes = experiment.models, experiment.stacks, experiment.votes
sources, folded = experiment.sources, experiment.folded


def config_of(preset, *overrides):
    return load_config(f"{CONFIG}:{preset}", overrides)[1]


def mlp(rngs):
    return models.ViewMLP(
        width=5,
        num_examples=6,
        hidden=(4, 3),
        dropout=(0.5, 0.2),
        num_outputs=2,
        activation=nnx.tanh,
        rngs=rngs,
    )


@pytest.fixture(scope="module")
def ensemble():
    return ensjax.Ensemble.init(mlp, num_members=2)


def test_encoders_arrive_and_age_and_sex_keep_their_weights(ensemble):
    rng = np.random.default_rng(0)
    encoders = [
        {"kernel": rng.normal(size=(2, 3, 4)), "bias": rng.normal(size=(2, 4))},
        {"kernel": rng.normal(size=(2, 4, 3)), "bias": rng.normal(size=(2, 3))},
    ]
    encoders = jax.tree.map(np.float32, encoders)
    assert models.arrival(ensemble, encoders) > 0.1
    started = models.start_from(ensemble, encoders, 3)
    assert models.arrival(started, encoders) == 0
    before, after = models.leaves(ensemble), models.leaves(started)
    np.testing.assert_array_equal(
        before["layers.0.kernel"][:, 3:], after["layers.0.kernel"][:, 3:]
    )
    np.testing.assert_array_equal(before["head.kernel"], after["head.kernel"])
    with pytest.raises(ValueError, match="3 inputs, not 4"):
        models.start_from(ensemble, encoders, 4)
    with pytest.raises(KeyError, match="layers.9.kernel"):
        models.replace_leaves(ensemble, {"layers.9.kernel": np.zeros(2)})


def test_a_member_reads_its_columns_and_no_padding(ensemble):
    x = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)
    mean, sd = np.full((2, 8), 0.5), np.full((2, 8), 2.0)
    inputs = stacks.stack_inputs(
        [np.array([1, 4]), np.array([2, 3, 5])], mean, sd, np.ones((2, 6)), [6, 7]
    )
    np.testing.assert_array_equal(inputs.columns, [[1, 4, 0, 6, 7], [2, 3, 5, 6, 7]])
    np.testing.assert_array_equal(inputs.present, [[1, 1, 0, 1, 1], [1] * 5])
    reading = models.with_inputs(ensemble, inputs)
    spoiled = x.copy()
    spoiled[:, 0] = 1e6  # no one's column, where the padding points
    logits = np.asarray(reading(spoiled))
    found = jax.device_get(reading.params)
    layers, head = found["layers"], found["head"]
    for member, columns in enumerate(([1, 4, 6, 7], [2, 3, 5, 6, 7])):
        places = np.flatnonzero(inputs.present[member])
        h = (x[:, columns] - 0.5) / 2
        for number, rows in ((0, places), (1, np.arange(4))):
            layer = layers[number]
            h = h @ layer["kernel"][...][member][rows] + layer["bias"][...][member]
            h = np.tanh(h)
        want = h @ head["kernel"][...][member] + head["bias"][...][member]
        np.testing.assert_allclose(logits[member], want, atol=1e-5)


def test_the_reconstruction_loss_is_rmse_and_the_divergence_of_sparse_codes():
    model = models.Autoencoder(
        width=3, num_examples=2, below=(), hidden=2, rngs=nnx.Rngs(0)
    )
    model.view.columns[...] = jnp.array([0, 2, 0])
    model.view.present[...] = jnp.array([1.0, 1.0, 0.0])
    x = np.random.default_rng(2).normal(size=(7, 3)).astype(np.float32)
    # A mask that hides nothing: no corruption.
    loss = models.ReconstructionLoss("mask", 0.0, 0.5, 0.2)
    value, metrics = nnx.jit(loss)(model, (x, None, None), jax.random.key(0))
    inputs = x[:, [0, 2, 0]] * [1, 1, 0]
    encoder, decoder = (
        (np.asarray(layer.kernel[...]), np.asarray(layer.bias[...]))
        for layer in (model.encoder, model.decoder)
    )
    code = np.tanh(inputs @ encoder[0] + encoder[1])
    said = code @ decoder[0] + decoder[1]
    rmse = np.sqrt(np.mean((inputs - said)[:, :2] ** 2))
    q = np.abs(code).mean(axis=0)
    divergence = 0.2 * np.log(0.2 / q) + 0.8 * np.log(0.8 / (1 - q))
    np.testing.assert_allclose(metrics["rmse"], rmse, rtol=1e-5)
    np.testing.assert_allclose(value, rmse + 0.5 * divergence.sum(), rtol=1e-5)


def test_a_second_autoencoder_rebuilds_what_the_first_one_says():
    model = models.Autoencoder(
        width=3, num_examples=2, below=(4,), hidden=2, rngs=nnx.Rngs(0)
    )
    rng = np.random.default_rng(9)
    kernel, bias, x = (rng.normal(size=s) for s in ((3, 4), (4,), (5, 3)))
    model.view.columns[...] = jnp.arange(3)
    model.view.present[...] = jnp.ones(3)
    model.below[0].kernel[...] = jnp.asarray(kernel, jnp.float32)
    model.below[0].bias[...] = jnp.asarray(bias, jnp.float32)
    found = nnx.jit(lambda m: m.target(x.astype(np.float32)))(model)
    np.testing.assert_allclose(found, np.tanh(x @ kernel + bias), atol=1e-5)


def test_validation_loss_is_the_mean_over_the_members_own_rows():
    model = mlp(nnx.Rngs(0))
    model.eval()
    mine = np.array([0, 1, 0, 1, 1, 0], np.float32)
    model.view.validation[...] = jnp.asarray(mine)
    model.view.present[...] = jnp.ones(5)
    model.view.columns[...] = jnp.arange(5)
    x = np.random.default_rng(3).normal(size=(6, 5)).astype(np.float32)
    labels = np.arange(6) % 2
    loss = nnx.jit(models.validate)
    batches = [
        loss(model, (x[rows], labels[rows], rows), None)
        for rows in (np.arange(3), np.arange(3, 6))
    ]
    log_probs = np.asarray(jax.nn.log_softmax(nnx.jit(lambda m, x: m(x))(model, x)))
    want = -(mine * log_probs[np.arange(6), labels]).sum() / 3
    np.testing.assert_allclose(np.mean(batches), want, rtol=1e-5)


def test_votes_are_fitted_on_validation_rows_and_leaks_are_refused():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, 60)
    right = rng.random((3, 60)) < np.array([0.9, 0.7, 0.4])[:, None]
    said = 2.0 * np.eye(2)[np.where(right, labels, 1 - labels)]
    sizes = {"train": 20, "validation": 20, "test": 20}
    split = data.split_rows("toy", 60, sizes, seed=0)
    judged = votes.judge(said, labels, split, ("a", "b", "c"))
    assert judged["votes"].shape == (len(votes.systems("abc")), 20)
    held_out, test = split["validation"], split["test"]
    accuracy = right[:, held_out].mean(axis=1)
    np.testing.assert_allclose(judged["validation"], accuracy, rtol=1e-6)
    np.testing.assert_array_equal(judged["votes"][:3] == labels[test], right[:, test])
    by_name = dict(zip(votes.systems("abc"), judged["votes"]))
    np.testing.assert_array_equal(by_name[votes.CHOSEN], judged["votes"][0])
    np.testing.assert_allclose(judged["weights"].sum(axis=1), 1, atol=1e-5)
    # Convex weights: no other point of a grid has less NLL.
    probs = np.exp(said) / np.exp(said).sum(axis=-1, keepdims=True)
    picked = probs[:, held_out, labels[held_out]]

    def nll(weights):
        return -np.log(weights @ picked).mean()

    grid = [np.array([i, j, 20 - i - j]) / 20 for i in range(21) for j in range(21 - i)]
    assert nll(judged["weights"][2]) <= min(map(nll, grid)) + 1e-4

    class Leaking:
        def __getitem__(self, part):
            return split[part]

        def provenance(self, part):
            return split.provenance(part, trained_on=("train", "validation"))

    published = votes.judge(said, labels, split, "abc", published=(0.1, 0.3, 2.0))
    assert len(published["votes"]) == len(votes.systems("abc", with_published=True))
    # The third view has nearly all the weight.
    np.testing.assert_array_equal(published["votes"][-1], published["votes"][2])

    with pytest.raises(LeakageError, match="weights of the votes"):
        votes.judge(said, labels, Leaking(), ("a", "b", "c"))


def test_simulated_connectomes_have_what_the_config_says():
    settings = config_of("claims").connectomes
    views = sources.simulate(settings, np.random.default_rng(0))
    assert views.x.shape == (600, 2_000 + 670 + 670 + 2)
    case = views.labels == 1
    for planted in views.planted.values():
        gap = views.x[case][:, planted].mean(axis=0) - views.x[~case][:, planted].mean(
            axis=0
        )
        # 30 differences of two means of 300: sd 0.11 each, and 0.45 in truth.
        assert abs(gap.mean() - 0.45) < 0.2
    age, male = views.x[:, views.extra].T
    assert abs(age[case].mean() - age[~case].mean() + 0.8) < 4 * 4 / np.sqrt(150)
    assert abs(male[case].mean() - 0.85) < 0.1
    again = sources.simulate(settings, np.random.default_rng(0))
    np.testing.assert_array_equal(views.x, again.x)


def test_abide_is_read_as_it_is_published(tmp_path):
    rng = np.random.default_rng(5)
    lines = ["SUB_ID,FILE_ID,SITE_ID,DX_GROUP,AGE_AT_SCAN,SEX"]
    series = {}
    for number in range(4):
        name = f"Pitt_{number:07d}"
        site = ("PITT", "NYU")[number % 2]
        group, age, sex = 1 + number % 2, 10.5 + number, 1 + (number == 3)
        lines.append(f"{number},{name},{site},{group},{age},{sex}")
        for kind, regions in (("cc200", 5), ("ez", 4)):
            if number == 2 and kind == "ez":
                continue  # a subject without this atlas
            folder = tmp_path / f"rois_{kind}"
            folder.mkdir(exist_ok=True)
            values = rng.normal(size=(9, regions))
            values[:, 0] = 1.0  # a region that never changes
            series[number, kind] = values
            text = "\n".join("\t".join(map(repr, map(float, row))) for row in values)
            header = "\t".join(f"#{2001 + r}" for r in range(regions))
            (folder / f"{name}_rois_{kind}.1D").write_text(f"{header}\n{text}\n")
    lines.append("9,no_filename,NYU,1,20,1")
    (tmp_path / sources.PHENOTYPES).write_text("\n".join(lines) + "\n")
    views = sources.read_abide(str(tmp_path), ("CC200", "EZ"))
    assert views.x.shape == (3, 10 + 6 + 2)
    assert views.labels.tolist() == [1, 0, 0]
    assert views.groups.tolist() == [1, 0, 0]  # NYU, PITT by name
    np.testing.assert_allclose(
        views.x[:, views.extra], [[10.5, 1], [11.5, 1], [13.5, 0]]
    )
    own = series[1, "cc200"]
    np.testing.assert_allclose(
        views.x[1, views.columns["CC200"][2]],
        np.corrcoef(own[:, 2], own[:, 1])[0, 1],
        rtol=1e-5,
    )
    assert views.x[1, views.columns["CC200"][0]] == 0


def test_mistakes_are_named_before_anything_is_written(tmp_path):
    for overrides, message in (
        ((("connectomes.widths", "(5, 6)"),), "connectomes.widths needs one number"),
        ((("network.dropout", "(0.5,)"),), "config.network.dropout needs one share"),
        ((("network.num_seeds", "99"),), "config.network.num_seeds must be at most"),
        ((("digits.num_train", "1700"),), "config.digits.num_train and"),
        ((("autoencoders.corruption", "salt"),), "gauss, mask, uniform"),
        ((("canary.num_kept", "6000"),), "config.canary.num_kept"),
        (
            (("network.total_steps", "21"),),
            "multiple of config.network.evaluate_every_steps",
        ),
        ((("connectomes.published_weights", "(1.0,)"),), "published_weights needs one"),
        ((("autoencoders.batch_size", "(8, 8)"),), "number for each of the 1"),
        ((("connectomes.num_folds", "50"),), "ids of their own"),
    ):
        with pytest.raises(ConfigError, match=message):
            experiment.validate(config_of("smoke", *overrides))
    experiment.validate(config_of("claims"))
    with pytest.raises(ConfigError, match="ABIDE I"):
        experiment.validate(config_of("paper"))
    empty = tmp_path / sources.PHENOTYPES
    empty.write_text("FILE_ID,SITE_ID\n")
    with pytest.raises(ConfigError, match="rois_cc200, rois_aal, rois_ez"):
        experiment.validate(config_of("paper", ("connectomes.root", str(tmp_path))))


def test_members_of_the_published_size_have_the_papers_shapes():
    job = experiment.training_job(config_of("paper"), shapes_only=True)
    shapes = nnx.eval_shape(lambda: job.make_model(nnx.Rngs(0)))
    assert [layer.kernel.shape for layer in shapes.layers] == [
        (3_002, 1_000),
        (1_000, 600),
        (600, 100),
    ]
    assert shapes.head.kernel.shape == (100, 2)
    # Ten folds of three atlases, with and without autoencoders; all subjects and
    # columns of three atlases with age and sex.
    assert len(set(job.member_ids)) == len(job.member_ids) == 60
    assert job.data[0].shape == (1_035, 19_900 + 2 * 6_670 + 2)
    assert job.options["weights"].shape == (60, 1_035)


def test_a_member_keeps_its_id_and_its_columns_in_other_company():
    assert stacks.make_ids((2, 3, 2)) == (0, 1, 256, 257, 512, 513) + tuple(
        65536 + i for i in (0, 1, 256, 257, 512, 513)
    )
    assert set(stacks.make_ids((2, 3, 1))) < set(stacks.make_ids((2, 3, 2)))
    inputs = models.Inputs(
        np.arange(12).reshape(4, 3), *np.ones((3, 4, 3)), np.ones((4, 5))
    )
    stack = stacks.Stack(None, None, inputs, None, (7, 3, 9, 1), (4,))
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "with_inputs", lambda _, own: seen.append(own.columns))
        stack.give_inputs(SimpleNamespace(member_ids=np.array([9, 7])))
    np.testing.assert_array_equal(seen[0], inputs.columns[[2, 0]])


def gained(best, equal, seeds=6):
    """Accuracies where the weighted vote is so far from both of its rivals."""
    systems = np.array(["view", "equal vote", "vote by accuracy"])
    spread = 0.001 * np.arange(seeds)[:, None] * [0.0, 0.0, 1.0]
    accuracy = np.array([0.8 - best, 0.8 - equal, 0.8]) + spread
    return {"systems": systems, "accuracy": accuracy, "accuracy_with": accuracy}


@pytest.mark.parametrize(
    "cells, verdict, least",
    [
        ((0.3, 0.2), "holds", None),
        ((0.3, -0.2), "fails", "minus the equal vote, views of cells"),
        ((-0.2, 0.3), "fails", "minus the best view, views of cells"),
        ((0.3, 0.0), "undecided", "minus the equal vote, views of cells"),
    ],
)
def test_the_weighted_vote_is_one_claim_over_all_rivals_and_data(
    cells, verdict, least, monkeypatch
):
    """ "Holds if both are above 0": whatever the other five came out as."""
    verdicts = experiment.verdicts
    monkeypatch.setattr(verdicts, "demographic_gain", lambda done: np.ones(6))
    done = {name: gained(0.3, 0.2) for name in ("digits", "connectomes")}
    done["cancer"] = gained(*cells)
    found = verdicts.make_claims(config_of("smoke"), done)
    (entry,) = [c for c in found if c["name"].startswith("made-for-asd.c")]
    assert entry["verdict"] == verdict and len(entry["parts"]) == 6
    assert least is None or least in entry["name"]


@pytest.mark.slow
def test_the_smoke_preset_runs_to_a_report_and_goes_on_from_its_stage(
    tmp_path, capsys, monkeypatch
):
    path = tmp_path / "run"
    options = RunOptions(spec=f"{CONFIG}:smoke", workdir=str(path))
    assert run_and_report(options) == 0
    text = (path / "results.json").read_text()
    results = json.loads(text)
    assert {claim["name"].split(":")[0] for claim in results["claims"]} == {
        f"made-for-asd.{letter}" for letter in "abcde"
    }
    (weighted,) = [c for c in results["claims"] if "made-for-asd.c" in c["name"]]
    shared = [tuple(part.get("split_sizes", ())) for part in weighted["parts"]]
    assert shared == [(300, 1_497)] * 2 + [(140, 429)] * 2 + [()] * 2
    passed = {check["name"]: check["pass"] for check in results["checks"]}
    assert passed["noise, features selected on all rows: accuracy"]
    assert passed["classifier's first layers minus the encoders before the first step"]
    assert abs(results["scalars"]["canary_inside_folds"] - 0.5) < 0.1
    # As if it had been killed after training the networks, before they were stored.
    (path / "results.json").unlink()
    (path / "stages" / "network.npz").unlink()
    capsys.readouterr()
    assert run_and_report(options) == 0
    assert (path / "results.json").read_text() == text
    out = capsys.readouterr().out
    assert out.count("read back") == 5 and "step 10/20" not in out  # trained before
    monkeypatch.setattr("ensjax.experiment.replay.set_devices_of", lambda run: None)
    assert cli.main(["replay", str(path), "--member", "0"]) == 2
    assert "start from autoencoders" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["smoke", "paper"])
def test_the_networks_are_planned(preset, capsys):
    assert cli.main(["plan", f"{CONFIG}:{preset}", "--no-trial"]) == 0
    assert "Memory of each device" in capsys.readouterr().out
