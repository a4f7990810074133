"""Aggregators of quantiles: what the weights mean, what masks mean, what is trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ensjax
from ensjax import combine
from ensjax.predictions import Predictions
from ensjax.provenance import LeakageError, Provenance
from ensjax.train.evaluation import EarlyStopping

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
BASE, ROWS, FEATURES = 4, 12, 3
KINDS = [
    (scope, kind)
    for scope in ("global", "local")
    for kind in combine.quantiles.aggregator.KINDS
]


def build(kind, scope, *, num_base=BASE, seed=0, random=True, **options):
    """An aggregator, with random weights in every parameter."""
    model = combine.QuantileAggregator(
        num_base=num_base,
        levels=LEVELS,
        kind=kind,
        scope=scope,
        num_features=FEATURES if scope == "local" else None,
        **{"hidden": (5,), **options} if scope == "local" else options,
        rngs=nnx.Rngs(seed),
    )
    if random:
        rng = np.random.default_rng(seed)
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        params = jax.tree.map(
            lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.5, p.dtype), params
        )
        model = nnx.merge(graph, params, rest)
    model.eval()
    return model


def without(model, base):
    """The same aggregator as if one base model had never been there."""
    options = (
        {"rank": None if model.mixer is None else model.mixer.shape[0]}
        if (model.scope == "local")
        else {}
    )
    small = build(
        model.kind,
        model.scope,
        num_base=model.num_base - 1,
        normalize=model.normalize,
        **options,
    )
    small.logits[...] = jnp.delete(model.logits[...], base, axis=0)
    if model.scope == "local":
        small.head[...] = jnp.delete(model.head[...], base, axis=1)
        for mine, theirs in zip(small.blocks, model.blocks):
            mine.linear.kernel[...] = theirs.linear.kernel[...]
            mine.linear.bias[...] = theirs.linear.bias[...]
        if model.mixer is not None:
            small.mixer[...] = model.mixer[...]
    return small


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    quantiles = np.sort(rng.normal(size=(BASE, ROWS, len(LEVELS))), axis=-1)
    x = rng.normal(size=(ROWS, FEATURES))
    return quantiles.astype(np.float32), x.astype(np.float32)


def softmax(logits):
    e = np.exp(logits - logits.max())
    return e / e.sum()


def by_loop(model, quantiles, x, mask):
    """The definition, row by row and level by level, in float64."""
    size = len(LEVELS)
    logits = np.asarray(model.logits[...], float)
    out = np.empty(quantiles.shape[1:])
    for n in range(quantiles.shape[1]):
        own = logits.copy()
        if model.scope == "local":
            hidden = np.asarray(x[n], float)
            for block in model.blocks:
                hidden = hidden @ np.asarray(block.linear.kernel[...], float)
                hidden = hidden + np.asarray(block.linear.bias[...], float)
                hidden = np.where(hidden > 0, hidden, np.expm1(hidden))
            added = np.tensordot(hidden, np.asarray(model.head[...], float), 1)
            if model.mixer is not None:
                added = added @ np.asarray(model.mixer[...], float)
            own = own + added
        for t in range(size):
            here = mask[:, n, t]
            values = quantiles[:, n, t].astype(float)
            if model.kind == "fine":
                own_t = own[..., t] + model.own_level * (np.arange(size) == t)[None]
                here, values = mask[:, n], quantiles[:, n].astype(float)
            else:
                own_t = own if model.kind == "coarse" else own[:, t]
            out[n, t] = softmax(own_t[here]) @ values[here]
    return out


def outputs(model, quantiles, x, mask):
    """What the model says before and after ordering, compiled."""

    @jax.jit
    def both(quantiles, x, mask):
        return model.mix(quantiles, x, mask=mask), model(quantiles, x, mask=mask)

    return both(quantiles, x, mask)


@pytest.mark.parametrize("scope, kind", KINDS)
def test_the_mixture_is_the_definition_also_where_models_and_levels_are_missing(
    rows, scope, kind
):
    quantiles, x = rows
    mask = np.random.default_rng(1).uniform(size=quantiles.shape) < 0.7
    mask[0] = True
    broken = np.where(mask, quantiles, np.nan)
    variants = [{}]
    if kind == "fine" and scope == "local":
        variants = [{"level_block": 2}, {"rank": 2}]
    for options in variants:
        model = build(kind, scope, **options)
        mixed, ordered = outputs(model, broken, x, mask)
        expected = by_loop(model, quantiles, x, mask)
        np.testing.assert_allclose(mixed, expected, atol=2e-6)
        np.testing.assert_allclose(ordered, np.sort(expected, -1), atol=2e-6)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "scope, kind, normalize",
    [
        ("global", "medium", True),
        ("global", "fine", True),
        ("local", "fine", True),
        pytest.param("local", "medium", True, marks=SLOW),
        pytest.param("local", "coarse", True, marks=SLOW),
        pytest.param("global", "coarse", True, marks=SLOW),
        pytest.param("global", "medium", False, marks=SLOW),
        pytest.param("local", "fine", False, marks=SLOW),
    ],
)
def test_a_masked_model_equals_an_absent_one(rows, scope, kind, normalize):
    quantiles, x = rows
    model = build(kind, scope, normalize=normalize)
    broken = quantiles.copy()
    broken[1] = np.nan
    mask = np.arange(BASE) != 1
    found = outputs(model, broken, x, mask)
    fewer = np.delete(quantiles, 1, axis=0)
    absent = outputs(without(model, 1), fewer, x, np.ones(BASE - 1, bool))
    np.testing.assert_allclose(found, absent, atol=1e-6)
    if normalize and kind == "medium":
        swapped = np.array([2, 0, 3, 1])  # the order of models changes nothing
        model.logits[...] = model.logits[...][swapped]
        if scope == "local":
            model.head[...] = model.head[...][:, swapped]
        found = outputs(model, broken[swapped], x, mask[swapped])
        np.testing.assert_allclose(found, absent, atol=1e-6)


def test_one_base_model_comes_back_and_new_weights_are_the_average(rows):
    quantiles, x = rows
    all_here, average = np.ones(BASE, bool), quantiles.mean(0)
    for scope, kind in (*KINDS[1:3], KINDS[4]):
        if kind != "fine":
            one = build(kind, scope, num_base=1)
            found = outputs(one, quantiles[:1], x, all_here[:1])[1]
            np.testing.assert_allclose(found, quantiles[0], atol=1e-6)
        new = build(kind, scope, random=False, normalize=kind != "fine")
        found = outputs(new, quantiles, x, all_here)[1]
        np.testing.assert_allclose(found, average, atol=1e-6)
    fine = build("fine", "global", random=False)
    own = np.exp(4) / (np.exp(4) + 4)
    weights = np.asarray(fine.weights)
    assert weights[:, 2, 2].sum() == pytest.approx(own, rel=1e-6)
    assert weights.sum(axis=(0, 1)) == pytest.approx(np.ones(5), rel=1e-6)


def test_a_row_without_any_model_is_nan_and_the_others_are_not(rows):
    quantiles, x = rows
    mask = np.ones((BASE, ROWS), bool)
    mask[:, 2] = False
    for scope, kind in KINDS[:3]:
        found = np.asarray(outputs(build(kind, scope), quantiles, x, mask)[1])
        assert np.isnan(found[2]).all() and np.isfinite(np.delete(found, 2, 0)).all()


def test_the_penalty_is_the_mean_over_pairs_and_margins_are_as_defined():
    rng = np.random.default_rng(3)
    quantiles = rng.normal(size=(6, 5)).astype(np.float32)
    base, targets = rng.normal(size=(3, 40, 5)), rng.normal(size=40)
    spread = np.quantile(targets - np.median(base[:, :, 2], axis=0), LEVELS)
    margins = {
        "single": (combine.constant_margin(5, 0.3), np.full((5, 5), 0.3)),
        "vec": (
            combine.proportional_margin(LEVELS, 2.0),
            2 * np.subtract.outer(LEVELS, LEVELS).T,
        ),
        "adapt": (
            combine.adaptive_margin(base, targets, levels=LEVELS, scale=0.1),
            0.1 * np.subtract.outer(spread, spread).T,
        ),
    }
    penalty = jax.jit(combine.crossing_penalty)
    for found, by_hand in margins.values():
        expected = np.zeros(6)
        for a in range(5):
            for b in range(a + 1, 5):
                fall = quantiles[:, a] - quantiles[:, b] + by_hand[a, b]
                expected += np.maximum(fall, 0) / 10
        np.testing.assert_allclose(penalty(quantiles, found), expected, rtol=1e-5)
    assert combine.crossing_penalty(np.sort(quantiles), 0.0).tolist() == [0] * 6
    many = np.random.default_rng(0).normal(size=(4_096, 3)).astype(np.float32)
    many[4, 2] = np.nan  # some compilers lose it in a maximum
    found = np.asarray(penalty(many, 0.0))
    assert np.isnan(found[4]) and np.isfinite(np.delete(found, 4)).all()


def test_quantiles_of_an_ensemble_invert_its_distribution_function():
    rng = np.random.default_rng(4)
    samples = rng.normal(size=(10, 6)).astype(np.float32)
    weights = rng.integers(0, 4, size=(10, 6)).astype(np.float32)
    weights[0] += 1
    levels = np.array([0.1, 0.25, 0.5, 0.7, 0.99])
    quantiles = jax.jit(combine.quantiles_of_ensemble)

    def reference(samples, **options):
        found = np.quantile(
            samples.astype(float), levels, axis=0, method="inverted_cdf", **options
        )
        return found.T

    np.testing.assert_array_equal(quantiles(samples, levels), reference(samples))
    found = quantiles(samples, levels, weights=weights)
    np.testing.assert_array_equal(found, reference(samples, weights=weights))
    twice = np.concatenate([samples, samples[::-1]])
    np.testing.assert_array_equal(quantiles(twice, levels), reference(samples))
    mask = np.arange(10) != 3
    broken = samples.copy()
    broken[3] = np.nan
    found = quantiles(broken, levels, mask=mask)
    np.testing.assert_array_equal(found, reference(samples[mask]))
    assert np.isnan(quantiles(broken, levels)).all()


# Training


def crossing_case(num=60):
    """Two columns of rows; the first base model is right in column 0, else the last."""
    rng = np.random.default_rng(5)
    offsets = np.array([-1.28, -0.67, 0, 0.67, 1.28])
    columns = []
    for right in (0, 2):
        mean = rng.normal(size=num)
        base = rng.normal(size=(3, num))
        base[right] = mean
        quantiles = base[..., None] + 0.3 * offsets
        targets = mean + 0.3 * rng.normal(size=num)
        columns.append((quantiles, targets, np.arange(num) % 3))
    return columns


def train(ensemble, rows, evaluation=None, steps=60):
    watched = {}
    if evaluation is not None:
        watched = dict(
            evaluation=evaluation,
            evaluation_loss=combine.quantile_evaluation,
            evaluate_every_steps=20,
            early_stopping=EarlyStopping(patience=None),
        )
    return ensjax.fit(
        ensemble,
        rows,
        loss=combine.quantile_loss,
        make_tx=optax.adam,
        hyper=0.1,
        steps=steps,
        batch_size=len(rows["targets"]),
        sampling="shared",
        steps_per_call=20,
        log_every_steps=20,
        progress=False,
        **watched,
    )[0]


@pytest.fixture(scope="module")
def stack():
    """Splits x folds x subsets of base models, as one stack."""
    columns = [combine.quantile_rows(q, y, fold=fold) for q, y, fold in crossing_case()]
    rows = combine.stack_columns(columns)
    masks = np.ones((5, 3), bool)
    masks[4, 0] = False
    ensemble = combine.aggregator_ensemble(
        lambda rngs: combine.QuantileAggregator(
            num_base=3, levels=LEVELS, kind="medium", rngs=rngs
        ),
        member_ids=range(5),
        column=[0, 1, 0, 0, 0],
        held_out=[-1, -1, 1, -1, -1],
        base_mask=masks,
        penalty=[0, 0, 0, 5, 0],
        mesh=ensjax.make_mesh(devices=jax.devices()[:1]),
    )
    return rows, ensemble, train(ensemble, rows)


def test_each_member_trains_on_its_own_column(stack):
    _, _, trained = stack
    weights = [trained[i].aggregator.weights for i in range(2)]
    assert weights[0][0].min() > 0.5 and weights[1][2].min() > 0.5


@pytest.mark.slow
def test_a_member_without_a_fold_equals_one_trained_on_the_other_rows_alone(stack):
    rows, ensemble, trained = stack
    kept = rows["fold"][:, 0] != 1
    fewer = {name: values[kept] for name, values in rows.items()}
    alone = train(ensemble.select([0]), fewer)
    found, expected = trained[2].aggregator.weights, alone[0].aggregator.weights
    np.testing.assert_allclose(found, expected, atol=1e-4)  # Adam amplifies rounding
    whole = trained[0].aggregator.weights
    assert abs(found - whole).max() > 1e-3


def test_a_member_told_to_leave_a_base_model_out_never_weighs_it(stack):
    rows, _, trained = stack
    found = combine.predict_quantiles(trained, rows)[4]
    quantiles = np.moveaxis(rows["quantiles"][:, 0], 1, 0)
    aggregator = trained[4].aggregator
    expected = aggregator(
        np.where([[[0]], [[1]], [[1]]], quantiles, np.nan),
        mask=np.array([False, True, True]),
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(aggregator.logits[0], np.zeros(5))  # no gradient


def test_the_loss_is_pinball_plus_penalty_over_rows_that_count():
    (quantiles, targets, fold), _ = crossing_case(12)
    quantiles = quantiles[..., ::-1]  # everything crosses
    targets[3] = np.nan  # joins the penalty only
    weight = np.linspace(0.5, 2, 12)
    rows = combine.quantile_rows(quantiles, targets, fold=fold, sample_weight=weight)
    for order_in_loss in (False, True):
        ensemble = combine.aggregator_ensemble(
            lambda rngs, inside=order_in_loss: combine.QuantileAggregator(
                num_base=3,
                levels=LEVELS,
                kind="coarse",
                order_in_loss=inside,
                order="isotonic",
                rngs=rngs,
            ),
            member_ids=[0],
            held_out=2,
            penalty=2.0,
            margin=0.5,
            mesh=ensjax.make_mesh(devices=jax.devices()[:1]),
        )
        member = ensemble[0]
        loss, metrics = jax.jit(lambda r, m=member: combine.quantile_loss(m, r, None))(
            rows
        )
        mixed = quantiles.mean(0)
        ordered = np.repeat(mixed.mean(-1, keepdims=True), 5, -1)  # all pooled
        used = ordered if order_in_loss else mixed
        over = targets[:, None] - used
        pinball = np.maximum(LEVELS * over, (np.array(LEVELS) - 1) * over).mean(-1)
        counts = (fold != 2) & ~np.isnan(targets)
        pinball = np.average(pinball[counts], weights=weight[counts])
        gaps = mixed[:, :, None] - mixed[:, None, :] + 0.5
        pairs = np.maximum(gaps, 0)[:, *np.triu_indices(5, 1)]
        penalty = pairs.mean(-1)[fold != 2].mean()
        assert metrics["pinball"] == pytest.approx(pinball, rel=1e-5)
        assert metrics["crossing_penalty"] == pytest.approx(penalty, rel=1e-5)
        assert loss == pytest.approx(pinball + 2 * penalty, rel=1e-5)


FIT = dict(levels=LEVELS, kind="medium", steps=40, evaluate_every_steps=20)


def test_fitting_refuses_rows_that_base_models_were_trained_on_and_test_rows():
    (quantiles, targets, _), _ = crossing_case(60)

    def fit(**options):
        return combine.fit_quantile_aggregator(quantiles, targets, **FIT, **options)

    seen = Provenance.of("here", np.arange(60), trained_on=np.arange(5))
    with pytest.raises(LeakageError, match="'forest'"):
        fit(provenance=seen, names=["forest"])
    predictions = Predictions(
        values=quantiles,
        mask=np.array([False, True, True]),
        weights=np.ones(3),
        kind="quantiles",
        names=("forest", "trees", "linear"),
        num_classes=0,
        provenance=seen,
    )
    with pytest.raises(LeakageError, match="'trees'"):  # the forest does not count
        combine.fit_quantile_aggregator(predictions, targets, **FIT)
    with pytest.raises(TypeError, match="are votes"):
        votes = dataclasses.replace(predictions, kind="votes")
        combine.fit_quantile_aggregator(votes, targets, **FIT)
    with pytest.raises(LeakageError, match="test rows only test"):
        fit(provenance=Provenance("here", np.arange(60), part="test"))
    with pytest.raises(ValueError, match="validation rows choose"):
        fit(penalty=(0, 1))
    with pytest.raises(ValueError, match="margin must be one of"):
        fit(margin="wide")


@pytest.mark.slow
@pytest.mark.parametrize("margin", ["single", "adapt", "vec"])
def test_fitting_chooses_settings_by_validation_and_knows_its_rows(margin):
    (quantiles, targets, _), _ = crossing_case(60)
    fitted = combine.fit_quantile_aggregator(
        quantiles[:, :40],
        targets[:40],
        **FIT,
        margin=margin,
        validation=(quantiles[:, 40:], targets[40:]),
        learning_rate=(1e-5, 0.1),
        provenance=Provenance("here", np.arange(40)),
    )
    assert fitted.settings[fitted.chosen][0] == 0.1
    values = fitted.log.evaluations["loss"]
    assert values[:, 1].min() < values[:, 0].min()
    best = scores_of(fitted(quantiles[:, 40:]), targets[40:])
    assert best == pytest.approx(values[:, 1].min(), rel=1e-5)
    test = Provenance("here", np.arange(30, 50), part="test")
    with pytest.raises(LeakageError, match="quantile aggregator was fitted on"):
        fitted(quantiles[:, 30:50], provenance=test)


def scores_of(quantiles, targets):
    return float(ensjax.scores.pinball(quantiles, targets, levels=LEVELS).mean())


@pytest.mark.slow
@pytest.mark.parametrize("member, data", [(8, 1), (4, 2), (1, 8)])
def test_eight_devices_train_as_one(stack, member, data):
    rows, ensemble, trained = stack
    rows = {name: values[:56] for name, values in rows.items()}
    one = train(ensemble, rows, rows)
    eight = train(
        ensemble.on_mesh(ensjax.make_mesh(member=member, data=data)), rows, rows
    )
    for i in range(5):
        found = eight[i].aggregator.weights
        np.testing.assert_allclose(found, one[i].aggregator.weights, atol=2e-4)


def test_mistakes_are_named(rows):
    quantiles, x = rows
    for options, text in (
        (dict(kind="finer"), "kind must be one of"),
        (dict(levels=(0.5, 0.1)), "levels must rise"),
        (dict(scope="local"), "num_features"),
        (dict(rank=2), "rank belongs"),
    ):
        options = {"levels": LEVELS, **options}
        with pytest.raises(ValueError, match=text):
            combine.QuantileAggregator(num_base=2, rngs=nnx.Rngs(0), **options)
    with pytest.raises(ValueError, match=r"\[member=4, batch, level=5\]"):
        build("medium", "global")(quantiles[:2])
    with pytest.raises(ValueError, match=r"x must be \[batch=12, feature=3\]"):
        build("medium", "local")(quantiles)
    with pytest.raises(ValueError, match="fold must have 12 rows"):
        combine.quantile_rows(quantiles, fold=np.zeros(3))
    with pytest.raises(ValueError, match="same entries"):
        combine.stack_columns(
            [combine.quantile_rows(quantiles), combine.quantile_rows(quantiles, x=x)]
        )
    with pytest.raises(ValueError, match="penalty must be of shape"):
        combine.aggregator_ensemble(
            lambda rngs: combine.QuantileAggregator(
                num_base=2, levels=LEVELS, rngs=rngs
            ),
            member_ids=[0, 1],
            penalty=[1.0, 2.0, 3.0],
        )
