"""What does not fit together is one line that names it, before anything is written."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensjax
from ensjax.group import Group

X = np.random.default_rng(0).normal(size=(24, 6)).astype(np.float32)
Y = np.arange(24) % 3
NAN = np.where(np.arange(24)[:, None] == 5, np.nan, X)


def shared_nll(logits, batch, key, mask):
    """Any joint objective."""
    return ensjax.train.ensemble_nll(logits, batch, key, mask)


def draws(model, batch, key):
    """A forward pass that draws from its key."""
    return model(batch[0]) + ensjax.losses.example_keys(key, 8).shape[0]


@dataclasses.dataclass
class Unhashable:
    """A dataclass that may change is compared by value, and has no hash."""

    weight: float = 1.0

    def __call__(self, model, batch, key):
        return self.weight * ensjax.losses.cross_entropy(model, batch, key)[0]


JOINT = ensjax.Joint(shared_nll)
VALUE, KIND = ValueError, TypeError
EVALUATED = dict(evaluation=(X, Y))

TABLE = {
    "steps 0": (dict(steps=0), VALUE, "steps must be at least 1; got 0"),
    "steps bool": (dict(steps=True), KIND, "steps must be an integer; got True"),
    "batch float": (
        dict(batch_size=8.0),
        KIND,
        "batch_size must be an integer; got 8.0",
    ),
    "steps float": (dict(steps=2.5), KIND, "steps must be an integer; got 2.5"),
    "calls": (dict(steps_per_call=0), VALUE, "steps_per_call must be at least 1"),
    "log": (
        dict(steps_per_call=4, log_every_steps=6),
        VALUE,
        "log_every_steps=6 must be a multiple of steps_per_call=4",
    ),
    "save": (
        dict(steps_per_call=4, log_every_steps=4, save_every_steps=2),
        VALUE,
        "save_every_steps=2 must be a multiple",
    ),
    "evaluate": (
        dict(steps_per_call=4, evaluate_every_steps=2, **EVALUATED),
        VALUE,
        "evaluate_every_steps=2 must be a multiple",
    ),
    "evaluation": (
        dict(evaluation=X),
        VALUE,
        "evaluation must hold arrays in the structure of data",
    ),
    "batch": (dict(batch_size=25), VALUE, "batch_size must be from 1 to the 24"),
    "batch 0": (dict(batch_size=0), VALUE, "batch_size must be from 1 to the 24"),
    "seed": (dict(seed=-1), VALUE, "seed must be from 0 to 2^31 - 1; got -1"),
    "seed 64 bits": (dict(seed=2**40), VALUE, "seed must be from 0"),
    "seed float": (dict(seed=0.5), KIND, "seed must be an integer; got 0.5"),
    "nan": (dict(data=(NAN, Y)), VALUE, "data[0] holds NaN"),
    "lengths": (dict(data=(X, Y[:9])), VALUE, "data[0]: 24, data[1]: 9"),
    "empty": (dict(data=(X[:0], Y[:0])), VALUE, "data[0] must be [example, ...]"),
    "scalar": (dict(data={"x": X, "y": np.float32(1)}), VALUE, "data['y'] must be"),
    "no array": (dict(data={}), VALUE, "data holds no array"),
    "text": (dict(data=(X, Y.astype(str))), KIND, "data[1] must hold numbers; got"),
    "objects": (dict(data=(X, Y.astype(object))), KIND, "data[1] must hold numbers"),
    "no data": (
        dict(data=3),
        KIND,
        "data must be arrays [example, ...] or an iterable",
    ),
    "no batches": (dict(data=[]), VALUE, "data holds no array"),
    "list of nan": (
        dict(data=[(NAN, Y)]),
        VALUE,
        "data (its first batch)[0] holds NaN",
    ),
    "sampling": (dict(sampling="random"), VALUE, "sampling must be one of independent"),
    "stream": (dict(sampling="stream"), VALUE, "sampling must be one of independent"),
    "stream and bootstrap": (
        dict(data=[(X, Y)], sampling="bootstrap"),
        VALUE,
        "sampling='bootstrap' draws from arrays",
    ),
    "no weights": (dict(sampling="weighted"), VALUE, "weights belong to sampling="),
    "lone weights": (dict(weights=np.ones(24)), VALUE, "weights belong to sampling="),
    "weights": (
        dict(sampling="weighted", weights=np.ones(23)),
        VALUE,
        "weights are [example] = (24,) or [member, example] = (2, 24); got (23,)",
    ),
    "negative weights": (
        dict(sampling="weighted", weights=-np.ones(24)),
        VALUE,
        "weights must be finite and not negative",
    ),
    "zero weights": (
        dict(sampling="weighted", weights=np.zeros(24)),
        VALUE,
        "weights must hold a positive weight",
    ),
    "negative loss weights": (
        dict(loss_weights=-np.ones(24)),
        VALUE,
        "loss_weights must be finite and not negative; loss_weights[0] is -1.0",
    ),
    "zero loss weights": (
        dict(loss_weights=np.zeros(24)),
        VALUE,
        "loss_weights must hold a positive weight",
    ),
    "hyper rows": (
        dict(hyper=np.ones((2, 5))),
        VALUE,
        "; hyper is (2, 5), [member, ...]. Expected one number for each member",
    ),
    "hyper column": (
        dict(hyper=np.ones((2, 1))),
        VALUE,
        "; hyper is (2, 1), [member, ...]. Expected one number for each member",
    ),
    "hyper": (dict(hyper=np.ones(3)), VALUE, "hyper has 3 values for 2 members"),
    "hyper dict": (
        dict(hyper={"lr": (1.0, 2.0, 3.0)}),
        VALUE,
        "hyper['lr'] has 3 values for 2 members",
    ),
    "hyper text": (dict(hyper="big"), KIND, "hyper must be a number"),
    "no hyper": (
        dict(hyper=None),
        KIND,
        "make_tx is called with 0 arguments here, since hyper is None",
    ),
    "lone hyper": (
        dict(make_tx=lambda: optax.sgd(0.1)),
        KIND,
        "make_tx is called with 1 arguments here, since hyper is given",
    ),
    "transformation": (
        dict(make_tx=optax.sgd(0.1)),
        KIND,
        "make_tx must be a function that builds the optimizer",
    ),
    "no transformation": (
        dict(make_tx=lambda hyper: hyper),
        KIND,
        "make_tx must return an optax transformation",
    ),
    "loss kind": (dict(loss=3), KIND, "loss must be a function"),
    "loss vector": (
        dict(loss=lambda model, batch, key: model(batch[0])[:, 0]),
        VALUE,
        "'loss' of one member must be a scalar, a mean over the batch",
    ),
    "loss none": (
        dict(loss=lambda model, batch, key: None),
        KIND,
        "loss must return a scalar or (scalar, dict of metrics)",
    ),
    "metric vector": (
        dict(loss=lambda m, b, k: (m(b[0]).mean(), {"logits": m(b[0])})),
        VALUE,
        "'logits' of one member must be a scalar",
    ),
    "metric name": (
        dict(loss=lambda m, b, k: (m(b[0]).mean(), {"loss": 0.0})),
        VALUE,
        'must not be called "loss"',
    ),
    "float labels": (
        dict(data=(X, Y.astype(np.float32))),
        KIND,
        "cross_entropy needs integer labels",
    ),
    "augment": (dict(augment=1), KIND, "augment must be a function"),
    "stopping": (
        dict(early_stopping=ensjax.EarlyStopping()),
        VALUE,
        "early_stopping needs an evaluation",
    ),
    "evaluate without": (
        dict(evaluate_every_steps=2),
        VALUE,
        "evaluate_every_steps needs an evaluation",
    ),
    "stopping kind": (
        dict(early_stopping="5", **EVALUATED),
        KIND,
        "early_stopping must be an ensjax.EarlyStopping(patience=5), or None; got '5'",
    ),
    "logger": (
        dict(logger=print),
        KIND,
        "logger must have a method write(step, metrics)",
    ),
    "members from nowhere": (
        dict(members_from=3),
        KIND,
        "members_from must be a path or a sequence of paths; got 3",
    ),
    "members from a number": (
        dict(members_from=[3]),
        KIND,
        "members_from must be a path; got 3",
    ),
    "members from a file": (
        dict(members_from=__file__),
        VALUE,
        f"{__file__} is a file",
    ),
    "one place of others": (
        dict(members_from="/nowhere/b"),
        VALUE,
        "/nowhere/b of members_from holds no checkpoint",
    ),
    "watched": (
        dict(early_stopping=ensjax.EarlyStopping(metric="f1"), **EVALUATED),
        VALUE,
        "Early stopping watches 'f1', but the loss reports",
    ),
    "evaluation lengths": (
        dict(evaluation=(X, Y[:3])),
        VALUE,
        "evaluation[0]: 24, evaluation[1]: 3",
    ),
    "evaluation batch": (
        dict(evaluation_batch_size=0, **EVALUATED),
        VALUE,
        "evaluation_batch_size must be at least 1",
    ),
    "block": (dict(block=0), VALUE, "block must be at least 1; got 0"),
    "block name": (dict(block="all"), VALUE, "block must be"),
    "joint sampling": (
        dict(loss=JOINT),
        VALUE,
        "A joint objective compares members on the same examples",
    ),
    "joint evaluation": (
        dict(loss=JOINT, sampling="shared", **EVALUATED),
        VALUE,
        "evaluation is of one member at a time",
    ),
    "joint vector": (
        dict(
            loss=ensjax.Joint(lambda outputs, batch, key, mask: outputs[0, :, 0]),
            sampling="shared",
        ),
        VALUE,
        "A joint objective is a scalar",
    ),
    "joint metric": (
        dict(
            loss=ensjax.Joint(
                lambda logits, *args: (logits.mean(), {"gap": logits[..., 0]})
            ),
            sampling="shared",
        ),
        VALUE,
        "'gap' of a joint objective must be a scalar or [member], here [2]; got shape"
        " (2, 8)",
    ),
    "loss without a hash": (
        dict(loss=Unhashable()),
        KIND,
        "loss must be hashable, since compiled programs are found by it; make"
        " Unhashable a frozen dataclass",
    ),
    "evaluation loss without a hash": (
        dict(evaluation_loss=Unhashable(), **EVALUATED),
        KIND,
        "evaluation_loss must be hashable",
    ),
    "batch block": (
        dict(loss=ensjax.Joint(shared_nll, batch_block=3), sampling="shared"),
        VALUE,
        "batch_block=3 must divide the 8 examples",
    ),
    "forward draws": (
        dict(loss=ensjax.Joint(shared_nll, forward=draws, batch_block=4))
        | dict(sampling="shared"),
        VALUE,
        "forward draws from its key",
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_a_bad_argument_is_named_before_anything_is_written(kit, tmp_path, case):
    options, kind, message = TABLE[case]
    options = dict(options)
    data = options.pop("data", (X, Y))
    directory = tmp_path / "run"
    with pytest.raises(kind) as error:
        kit.fit(
            kit.ensemble("mlp", 2),
            data,
            **{
                "steps": 4,
                "steps_per_call": None,
                "checkpoint_dir": directory,
                **options,
            },
        )
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not directory.exists()


def test_what_is_trained_must_be_an_ensemble_with_ids_that_differ(kit):
    data = (X, Y)
    with pytest.raises(TypeError, match="ensemble must be an Ensemble or a Group"):
        kit.fit(kit.ensemble("mlp", 2)[0], data)
    twice = kit.ensemble("mlp", 2).select([0, 0])
    with pytest.raises(ValueError, match="member_ids must differ"):
        kit.fit(twice, data)
    with pytest.raises(ValueError, match="member_ids must differ"):
        kit.fit(Group((kit.ensemble("mlp", 2), kit.ensemble("mlp", 3))), data)


def test_a_batch_must_divide_over_data_shards(kit):
    with pytest.raises(ValueError, match="batch_size=9 must divide over data=2"):
        kit.fit(kit.ensemble("mlp", 2, mesh=(4, 2)), (X, Y), batch_size=9)
    with pytest.raises(ValueError, match="batches of 3 examples, which must divide"):
        kit.fit(kit.ensemble("mlp", 2, mesh=(4, 2)), [(X[:3], Y[:3])])


def test_a_file_is_no_place_for_checkpoints(kit, tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for place in (file, file / "run"):
        with pytest.raises(ValueError, match=f"checkpoint_dir='{place}' must be a f"):
            kit.fit(kit.ensemble("mlp", 2), (X, Y), checkpoint_dir=place)
    with pytest.raises(TypeError, match="checkpoint_dir must be a path; got 3"):
        kit.fit(kit.ensemble("mlp", 2), (X, Y), checkpoint_dir=3)
    assert file.read_text() == "x"


@pytest.mark.parametrize(
    "make, kind, message",
    [
        (lambda: ensjax.EarlyStopping(patience=2.5), KIND, "patience must be an int"),
        (lambda: ensjax.EarlyStopping(patience="3"), KIND, "patience must be an int"),
        (lambda: ensjax.EarlyStopping(patience=True), KIND, "patience must be an int"),
        (lambda: ensjax.EarlyStopping(patience=0), VALUE, "patience must be at least"),
        (lambda: ensjax.EarlyStopping(min_delta=np.nan), VALUE, "min_delta must be fi"),
        (lambda: ensjax.EarlyStopping(min_delta="0"), KIND, "min_delta must be a numb"),
        (lambda: ensjax.EarlyStopping(metric=1), KIND, "metric must be a name; got 1"),
        (lambda: ensjax.Health(max_recoveries=2.5), KIND, "max_recoveries must be an"),
        (lambda: ensjax.Health(max_recoveries=0), VALUE, "max_recoveries must be at"),
        (
            lambda: ensjax.Health(learning_rate_factor="0.1"),
            KIND,
            "learning_rate_factor must be a number; got '0.1'",
        ),
    ],
)
def test_settings_are_checked_when_they_are_made(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_several_hyperparameters_in_a_row_are_what_make_tx_takes_apart(kit):
    rows = np.array([[1e-3, 0.9], [1e-2, 0.8]], np.float32)

    def make_tx(hyper):
        return optax.adam(hyper[0], b1=hyper[1])

    single = dict(steps=1, steps_per_call=1)
    _, log = kit.fit(
        kit.ensemble("mlp", 2), (X, Y), hyper=rows, make_tx=make_tx, **single
    )
    assert np.isfinite(log.metrics["loss"]).all()


def test_intervals_mean_nothing_without_what_they_are_for(kit):
    with pytest.raises(ValueError, match="save_every_steps needs a checkpoint_dir"):
        kit.fit(kit.ensemble("mlp", 2), (X, Y), save_every_steps=2)


@pytest.mark.parametrize(
    "name, layer", [("mlp-batch-norm", "BatchStat"), ("mlp-dropout", "Rng")]
)
def test_a_batch_is_not_taken_apart_under_batch_norm_or_dropout(kit, name, layer):
    loss = ensjax.Joint(shared_nll, batch_block=4)
    with pytest.raises(ValueError, match=f"what a {layer}.*need batch_block=None"):
        kit.fit(kit.ensemble(name, 2), (X, Y), loss=loss, sampling="shared")


def test_too_many_unrolled_members_are_refused(kit):
    with pytest.raises(ValueError, match="unroll=True .* refused above 16"):
        ensemble = ensjax.Ensemble.from_apply(
            lambda w, x: x @ w, jnp.zeros((17, 6, 3)), mesh=kit.mesh(1, 1)
        )
        kit.fit(ensemble, (X, Y), unroll=True)
