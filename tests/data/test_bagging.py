"""Resamples as weights: fair draws, keyed by member id, and losses that follow them."""

import jax
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

import ensjax
from ensjax import data, losses
from ensjax.data.sampling import bootstrap_counts
from ensjax.members import member_key

N = 10
KINDS = ("multinomial", "poisson", "bayesian", "subsample")
STRATA = np.array(["a"] * 6 + ["b"] * 4)
GROUPS = np.array([0, 0, 1, 1, 2, 2, 3, 4, 4, 3])


# Compiled as one program, which is quicker than many small ones.
_draw = jax.jit(data.bootstrap_weights, static_argnums=2, static_argnames="kind")


def _weights(ids=(0, 1, 2, 3, 4), seed=3, kind="multinomial"):
    return np.asarray(_draw(seed, np.array(ids), N, kind=kind))


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("poisson", marks=pytest.mark.slow),
        "multinomial",
        pytest.param("bayesian", marks=pytest.mark.slow),
        "subsample",
    ],
)
def test_a_members_weights_depend_on_its_id_alone(kind):
    many = _weights(kind=kind)
    np.testing.assert_array_equal(
        _weights((4, 1, 0, 9, 7), kind=kind)[:3], many[[4, 1, 0]]
    )
    assert many.dtype == np.float32 and len(np.unique(many, axis=0)) == 5
    assert (_weights(seed=4, kind=kind) != many).any()
    if kind == "multinomial":
        np.testing.assert_array_equal(many.sum(axis=1), N)
        # The rows that `fit(sampling="bootstrap")` trains on.
        expected = bootstrap_counts(member_key(3, "bootstrap", 2), N)
        np.testing.assert_array_equal(many[2], expected)
    elif kind == "bayesian":
        np.testing.assert_allclose(many.sum(axis=1), N, rtol=1e-6)
        assert (many > 0).all()
    elif kind == "subsample":
        np.testing.assert_array_equal(np.sort(many, axis=1), [[0] * 5 + [1] * 5] * 5)
    else:
        np.testing.assert_array_equal(many, np.round(many))


@pytest.mark.slow
def test_the_kinds_have_their_variances_and_out_of_bag_shares():
    n = 4_000
    weights = {k: np.asarray(data.bootstrap_weights(0, 2, n, kind=k)) for k in KINDS}
    # 5 standard errors of a share of n rows are 0.04; of a mean of variance 1, 0.08.
    for kind in ("multinomial", "poisson"):
        assert abs((weights[kind] == 0).mean() - np.exp(-1)) < 0.04
        assert abs(weights[kind].mean() - 1) < 0.08
        assert abs(weights[kind].var() - 1) < 0.2
    assert abs(weights["bayesian"].var() - 1) < 0.3  # of an exponential
    np.testing.assert_array_equal(weights["subsample"].sum(axis=1), n / 2)


@pytest.mark.slow
def test_strata_keep_their_sizes_and_groups_stay_together():
    by_stratum = np.asarray(data.bootstrap_weights(0, 5, N, strata=STRATA))
    np.testing.assert_array_equal(by_stratum[:, :6].sum(axis=1), 6)
    np.testing.assert_array_equal(by_stratum[:, 6:].sum(axis=1), 4)
    by_group = np.asarray(data.bootstrap_weights(0, 5, N, groups=GROUPS))
    for group in range(5):
        own = by_group[:, group == GROUPS]
        np.testing.assert_array_equal(own, np.broadcast_to(own[:, :1], own.shape))
    # Five draws of groups, in whatever order.
    np.testing.assert_array_equal(by_group[:, [0, 2, 4, 6, 7]].sum(axis=1), 5)


@pytest.mark.slow
def test_groups_are_drawn_within_their_strata():
    both = np.asarray(data.bootstrap_weights(0, 5, N, groups=GROUPS, strata=STRATA))
    np.testing.assert_array_equal(both[:, [0, 2, 4]].sum(axis=1), 3)
    np.testing.assert_array_equal(both[:, [6, 7]].sum(axis=1), 2)
    np.testing.assert_array_equal(both[:, 7], both[:, 8])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="kind must be one of"):
        data.bootstrap_weights(0, 2, 5, kind="jackknife")
    with pytest.raises(ValueError, match=r"strata must be \[example\] = \(5,\)"):
        data.bootstrap_weights(0, 2, 5, strata=np.zeros(4))
    with pytest.raises(ValueError, match="row 1 is in another stratum than row 0"):
        data.bootstrap_weights(0, 2, 2, groups=[0, 0], strata=[0, 1])
    with pytest.raises(ValueError, match="members must be"):
        data.bootstrap_weights(0, 0, 2)
    with pytest.raises(ValueError, match="num_kept must be from 1 to"):
        data.random_subspaces(0, 2, 3, 4)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\)"):
        data.class_weights(np.array([0, 2]), 2)


@pytest.mark.slow
def test_under_bagging_balances_the_classes_and_uses_many_rows():
    labels = np.array([0] * 7 + [1] * 3)
    weights = np.asarray(data.balanced_weights(0, 20, labels))
    for c in range(2):
        np.testing.assert_array_equal(weights[:, labels == c].sum(axis=1), 3)
    assert (weights.sum(axis=0) > 0).all()  # a row is missed with chance (4 / 7)^20


def test_subspaces_are_masks_of_as_many_features():
    masks = np.asarray(data.random_subspaces(0, 20, 10, 3))
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks.sum(axis=1), 3)
    assert masks.any(axis=0).all()


def test_class_weights_equal_scikit_learn_and_the_paper():
    labels = np.array([0] * 7 + [1] * 2 + [3])
    found = data.class_weights(labels, 5)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    # scikit-learn's classes without rows are absent; ours have weight 0.
    np.testing.assert_allclose(found[[0, 1, 3]], expected, rtol=1e-6)
    np.testing.assert_array_equal(found[[2, 4]], 0)
    found = data.class_weights(labels, 5, kind="effective", beta=0.9)
    paper = np.array([(1 - 0.9) / (1 - 0.9**n) for n in (7, 2, 1)])
    np.testing.assert_allclose(found[[0, 1, 3]] / found[3], paper / paper[2], rtol=1e-6)
    np.testing.assert_allclose(found[labels].mean(), 1, rtol=1e-6)
    even = data.class_weights(labels, 5, kind="effective", beta=0.0)
    np.testing.assert_allclose(even[[0, 1, 3]], 1, rtol=1e-6)


def _logits_and_labels():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(9, 3)).astype(np.float32)
    return logits, rng.integers(0, 3, 9), rng.integers(0, 3, 9).astype(np.float32)


def test_weighted_losses_equal_loops():
    logits, labels, weight = _logits_and_labels()
    model = lambda x: x  # noqa: E731
    log_probs = logits.astype(float) - np.log(np.exp(logits).sum(1, keepdims=True))
    nll = -log_probs[np.arange(9), labels]
    prior = np.array([0.7, 0.2, 0.1])
    adjusted = logits + 0.5 * np.log(prior)
    adjusted -= np.log(np.exp(adjusted).sum(1, keepdims=True))
    rows = {
        losses.cross_entropy: nll,
        losses.FocalLoss(2.0): (1 - np.exp(-nll)) ** 2 * nll,
        losses.FocalLoss(0.0): nll,
        losses.LogitAdjustedLoss(tuple(prior), 0.5): -adjusted[np.arange(9), labels],
    }
    for loss, expected in rows.items():
        plain, metrics = loss(model, (logits, labels), None)
        assert "accuracy" in metrics
        np.testing.assert_allclose(plain, expected.mean(), rtol=1e-5)
        weighted, _ = loss(model, (logits, labels), None, weight)
        np.testing.assert_allclose(
            weighted, np.average(expected, weights=weight), rtol=1e-5
        )
    targets = np.zeros((9, 3), np.float32)
    for loss, power in (
        (losses.mean_squared_error, 2),
        (losses.mean_absolute_error, 1),
    ):
        errors = np.abs(logits) ** power
        np.testing.assert_allclose(
            loss(model, (logits, targets), None), errors.mean(), rtol=1e-5
        )
        np.testing.assert_allclose(
            loss(model, (logits, targets), None, weight),
            np.average(errors.mean(axis=1), weights=weight),
            rtol=1e-5,
        )


def test_a_sure_row_has_a_finite_focal_gradient():
    def loss(scale):
        logits = scale * np.array([[1.0, 0.0]], np.float32)
        return losses.FocalLoss(0.5)(lambda x: x, (logits, np.array([0])), None)[0]

    gradient = jax.jit(jax.grad(loss))(200.0)
    assert np.isfinite(gradient)


def _make_model(rngs):
    return ensjax.nn.MLP(in_features=3, hidden=(4,), num_outputs=2, rngs=rngs)


def _fit(ensemble, xy, mesh=None, **options):
    defaults = dict(
        loss=losses.cross_entropy,
        make_tx=adam,
        hyper=1e-2,
        block=None,
        steps=6,
        steps_per_call=3,
        batch_size=12,
        sampling="shared",
        progress=False,
    )
    return ensjax.fit(ensemble, xy, mesh=mesh, **{**defaults, **options})


def adam(learning_rate):
    import optax

    return optax.adam(learning_rate, eps=1e-3)


@pytest.fixture(scope="module")
def training():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(12, 3)).astype(np.float32)
    y = rng.integers(0, 2, 12)
    mesh = ensjax.make_mesh(member=1, data=1, devices=jax.devices()[:1])
    ensemble = ensjax.Ensemble.init(_make_model, num_members=2, mesh=mesh)
    return (
        ensemble,
        (x, y),
        np.asarray(jax.jit(lambda: data.bootstrap_weights(0, 2, 12))()),
    )


@pytest.mark.slow
def test_weighting_a_row_twice_trains_as_having_it_twice(training):
    ensemble, (x, y), weights = training
    trained, log = _fit(ensemble, (x, y), loss_weights=weights)
    rows = np.repeat(np.arange(12), weights[1].astype(int))
    assert len(rows) == 12
    same, same_log = _fit(ensemble, (x[rows], y[rows]))
    np.testing.assert_allclose(
        log.metrics["loss"][:, 1], same_log.metrics["loss"][:, 1], rtol=1e-5
    )
    for ours, theirs in zip(
        jax.tree.leaves(trained.params), jax.tree.leaves(same.params)
    ):
        np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)


def test_rows_without_weight_have_no_influence_and_a_batch_without_any_none(training):
    ensemble, (x, y), _ = training
    weights = np.ones((2, 12), np.float32)
    weights[0, :5] = 0
    other = x.copy()
    other[:5] += 100
    trained, _ = _fit(ensemble, (x, y), loss_weights=weights)
    changed, _ = _fit(ensemble, (other, y), loss_weights=weights)
    for a, b in zip(jax.tree.leaves(trained.params), jax.tree.leaves(changed.params)):
        np.testing.assert_array_equal(a[0], b[0])
        assert (np.asarray(a[1]) != np.asarray(b[1])).any()
    assert losses.weighted_mean(np.ones(3), np.zeros(3)) == 0


@pytest.mark.slow
def test_a_weighted_loss_is_the_same_on_every_mesh(training):
    ensemble, xy, weights = training
    alone, log = _fit(ensemble, xy, loss_weights=weights)
    for member, shards in ((2, 4), (1, 2)):
        mesh = ensjax.make_mesh(
            member=member, data=shards, devices=jax.devices()[: member * shards]
        )
        split, split_log = _fit(ensemble, xy, mesh=mesh, loss_weights=weights)
        np.testing.assert_allclose(
            split_log.metrics["loss"], log.metrics["loss"], atol=1e-5
        )
        for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(split.params)):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_loss_weights_that_do_not_fit_are_refused(training):
    ensemble, xy, weights = training
    with pytest.raises(ValueError, match=r"loss_weights are \[example\] = \(12,\)"):
        _fit(ensemble, xy, loss_weights=weights[:, :-1])
    with pytest.raises(ValueError, match="finite and not negative"):
        _fit(ensemble, xy, loss_weights=-weights)
    with pytest.raises(ValueError, match='combined with sampling="weighted"'):
        _fit(ensemble, xy, loss_weights=weights, sampling="weighted", weights=weights)
    joint = ensjax.Joint(ensjax.train.ensemble_nll)
    with pytest.raises(ValueError, match="joint objective"):
        _fit(ensemble, xy, loss_weights=weights, loss=joint)
    with pytest.raises(ValueError, match="a stream yields the weights"):
        _fit(ensemble, [xy], loss_weights=weights, batch_size=12)


@pytest.mark.slow
def test_a_job_selects_the_members_weights_and_is_planned(training):
    _, (x, y), weights = training
    job = ensjax.train.TrainingJob(
        make_model=_make_model,
        member_ids=(0, 1),
        init_seed=0,
        data=(x, y),
        hyper=np.full(2, 1e-2, np.float32),
        mesh_sizes=dict(member=1, data=1, model=1),
        options=dict(
            loss=losses.cross_entropy,
            make_tx=adam,
            steps=4,
            batch_size=12,
            sampling="shared",
            loss_weights=weights,
        ),
    )
    mesh = ensjax.make_mesh(member=1, data=1, devices=jax.devices()[:1])
    both, _ = job.fit(mesh, progress=False)
    one, _ = job.select([1]).fit(mesh, progress=False)
    for a, b in zip(jax.tree.leaves(both.params), jax.tree.leaves(one.params)):
        np.testing.assert_allclose(a[1], b[0], atol=1e-6)
    lowered = ensjax.train.lower_step(
        job.abstract_ensemble(mesh),
        (x, y),
        hyper=job.hyper,
        steps_per_call=4,
        **{k: v for k, v in job.options.items() if k != "steps"},
    )
    assert "12xf32" in lowered.as_text()


@pytest.mark.slow
def test_a_run_with_loss_weights_resumes_and_refuses_others(training, tmp_path):
    ensemble, xy, weights = training
    options = dict(loss_weights=weights, save_every_steps=3, checkpoint_dir=tmp_path)
    whole, _ = _fit(ensemble, xy, loss_weights=weights)
    _fit(ensemble, xy, steps=3, **options)
    resumed, _ = _fit(ensemble, xy, **options)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params)):
        np.testing.assert_array_equal(a, b)
    other = options | {"loss_weights": weights[::-1]}
    with pytest.raises(ValueError, match="weights"):
        _fit(ensemble, xy, steps=9, **other)
