"""Members of `weighted_views.py`: MLPs of a view, and autoencoders that start them.

A member carries which columns it reads and how its fold standardises them, so that
views and folds of different widths are one stack over one array of data.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ensjax import Ensemble, losses

OPTIMIZERS = ("adam", "sgd")


class Fixed(nnx.Variable):
    """Part of a member that is not trained."""


class Inputs(NamedTuple):
    """What each member reads; all `[member, width]`, but the last.

    `columns`, `mean` and `sd` of the training rows, `present` (0 for padding), and
    `validation [member, example]`, the rows that choose its best weights.
    """

    columns: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    present: np.ndarray
    validation: np.ndarray

    def first(self, width: int) -> "Inputs":
        """The first columns only, such as those without age and sex."""
        cut = [value[:, :width] for value in self[:4]]
        return Inputs(*cut, self.validation)


class View(nnx.Module):
    """The columns of one member, standardised; padding is 0."""

    def __init__(self, width, num_examples):
        self.columns = Fixed(jnp.zeros(width, jnp.int32))
        self.mean = Fixed(jnp.zeros(width))
        self.sd = Fixed(jnp.ones(width))
        self.present = Fixed(jnp.zeros(width))
        self.validation = Fixed(jnp.zeros(num_examples))

    def __call__(self, x):
        chosen = jnp.take(x, self.columns[...], axis=1)
        scaled = (chosen - self.mean[...][None]) / self.sd[...][None]
        return scaled * self.present[...][None]


class ViewMLP(nnx.Module):
    """A view, dense layers with an activation and dropout, and logits."""

    def __init__(
        self, *, width, num_examples, hidden, dropout, num_outputs, activation, rngs
    ):
        self.view = View(width, num_examples)
        widths = (width, *hidden)
        pairs = zip(widths[:-1], widths[1:])
        self.layers = nnx.List(nnx.Linear(i, o, rngs=rngs) for i, o in pairs)
        self.dropouts = nnx.List(nnx.Dropout(rate, rngs=rngs) for rate in dropout)
        self.head = nnx.Linear(widths[-1], num_outputs, rngs=rngs)
        self.activation = activation

    def __call__(self, x):
        """Logits `[batch, class]` of `[batch, column]`."""
        h = self.view(x)
        for layer, dropout in zip(self.layers, self.dropouts, strict=True):
            h = dropout(self.activation(layer(h)))
        return self.head(h)


class Autoencoder(nnx.Module):
    """One tanh layer and back, behind `below`, layers that are trained already."""

    def __init__(self, *, width, num_examples, below, hidden, rngs):
        self.view = View(width, num_examples)
        widths = (width, *below)
        self.below = nnx.List(
            FixedLayer(num_in, num_out) for num_in, num_out in zip(widths, widths[1:])
        )
        self.encoder = nnx.Linear(widths[-1], hidden, rngs=rngs)
        self.decoder = nnx.Linear(hidden, widths[-1], rngs=rngs)

    def target(self, x):
        """What is to be reconstructed, `[batch, feature]`."""
        h = self.view(x)
        for layer in self.below:
            h = jnp.tanh(h @ layer.kernel[...] + layer.bias[...][None])
        return h

    def reconstruct(self, corrupted):
        """The reconstruction and the code, `[batch, feature]` and `[batch, hidden]`."""
        code = jnp.tanh(self.encoder(corrupted))
        return self.decoder(code), code


class FixedLayer(nnx.Module):
    """A dense layer that is not trained."""

    def __init__(self, num_in, num_out):
        self.kernel = Fixed(jnp.zeros((num_in, num_out)))
        self.bias = Fixed(jnp.zeros(num_out))


def _uniform(key, x, amount):
    return x * jax.random.uniform(key, x.shape, maxval=amount)


def _mask(key, x, amount):
    return x * jax.random.bernoulli(key, 1 - amount, x.shape)


def _gauss(key, x, amount):
    return x + amount * jax.random.normal(key, x.shape)


CORRUPTIONS = {"gauss": _gauss, "mask": _mask, "uniform": _uniform}


class ReconstructionLoss(NamedTuple):
    """RMSE of what was corrupted, and a penalty for codes that are not sparse.

        sqrt(mean (x - xhat)^2) + weight sum_j KL(target || mean_i |h_ij|)

    Columns of padding count in neither.
    """

    corruption: str
    amount: float
    sparsity_weight: float
    sparsity_target: float

    def __call__(self, model, batch, key):
        x, _, _ = batch
        target = jax.lax.stop_gradient(model.target(x))
        corrupt = CORRUPTIONS[self.corruption]
        keys = losses.example_keys(key, len(target))
        corrupted = jax.vmap(lambda k, row: corrupt(k, row, self.amount))(keys, target)
        said, code = model.reconstruct(corrupted)
        counts = jnp.ones_like(target[0])
        if not model.below:
            counts = model.view.present[...]
        squares = jnp.mean((target - said) ** 2, axis=0) * counts
        rmse = jnp.sqrt(jnp.sum(squares) / jnp.sum(counts))
        size = jnp.mean(jnp.abs(code), axis=0)
        loss = rmse + self.sparsity_weight * jnp.sum(self._divergence(size))
        return loss, {"rmse": rmse, "mean_code": jnp.mean(size)}

    def _divergence(self, size):
        # |tanh| can reach 1, where the logarithm ends.
        q = jnp.clip(size, 1e-4, 1 - 1e-4)
        p = self.sparsity_target
        return p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q))


def classify(model, batch, key):
    """Cross-entropy of `(x, labels, row)`."""
    x, labels, _ = batch
    return losses.cross_entropy(model, (x, labels), key)


def validate(model, batch, key):
    """Cross-entropy summed over the member's own validation rows, over their number."""
    del key
    x, labels, row = batch
    mine = model.view.validation[...]
    nll = -losses.label_log_probs(model(x), labels)
    # Batches are averaged, so a mean over all rows comes out as one over these.
    return jnp.mean(nll * mine[row]) * len(mine) / jnp.sum(mine)


def make_optimizer(settings, learning_rate):
    """`make_tx()` of a section of the config."""
    if settings.optimizer == "adam":
        return lambda: optax.adam(learning_rate)
    first, last = settings.get("momentum", (0.0, 0.0))
    steps = settings.get("momentum_steps", 1)
    momentum = optax.linear_schedule(first, last, steps)
    return lambda: optax.inject_hyperparams(optax.sgd)(
        learning_rate=learning_rate, momentum=momentum
    )


def with_inputs(ensemble: Ensemble, inputs: Inputs) -> Ensemble:
    """The ensemble whose members read these columns."""
    values = {f"view.{name}": value for name, value in inputs._asdict().items()}
    return replace_leaves(ensemble, values)


def replace_leaves(ensemble: Ensemble, values: dict[str, np.ndarray]) -> Ensemble:
    """The ensemble with other stacked arrays, named as `layers.0.kernel`.

    Raises:
        KeyError: if there is no such leaf; names it.
        ValueError: if a shape differs.
    """
    left = dict(values)

    def replace(path, leaf):
        name = leaf_name(path)
        if name not in left:
            return leaf
        value = jnp.asarray(left.pop(name), leaf.dtype)
        if value.shape != leaf.shape:
            raise ValueError(f"{name} has shape {leaf.shape}; got {value.shape}.")
        return value

    state = jax.tree.map_with_path(replace, ensemble.state)
    if left:
        raise KeyError(f"the members have no {', '.join(left)}.")
    return dataclasses.replace(ensemble, state=state).on_mesh(ensemble.mesh)


def leaves(ensemble: Ensemble) -> dict[str, np.ndarray]:
    """All stacked arrays by name, such as `encoder.kernel`."""
    found = jax.tree.leaves_with_path(ensemble.state)
    return {leaf_name(path): leaf for path, leaf in found}


def leaf_name(path) -> str:
    """`layers.0.kernel` of a path into the state."""
    # The first part says whether it is trained, the last one is a variable's value.
    return ".".join(str(part.key) for part in path[1:-1])


def encoder_weights(ensemble: Ensemble) -> dict[str, np.ndarray]:
    """Kernel and bias of trained encoders, `[member, ...]`."""
    found = leaves(ensemble)
    return {name: np.asarray(found[f"encoder.{name}"]) for name in ("kernel", "bias")}


def start_from(
    ensemble: Ensemble, encoders: list[dict[str, np.ndarray]], width: int
) -> Ensemble:
    """Classifiers whose first layers are the encoders, one for each member.

    Members beyond those of the encoders keep their initial weights, and so do the first
    layer's rows beyond `width` (age and sex).
    """
    found, values = leaves(ensemble), {}
    for number, encoder in enumerate(encoders):
        members, rows = encoder["kernel"].shape[:2]
        if number == 0 and rows != width:
            raise ValueError(f"the first encoder has {rows} inputs, not {width}.")
        kernel = np.array(found[f"layers.{number}.kernel"])
        bias = np.array(found[f"layers.{number}.bias"])
        kernel[:members, :rows] = encoder["kernel"]
        bias[:members] = encoder["bias"]
        values[f"layers.{number}.kernel"] = kernel
        values[f"layers.{number}.bias"] = bias
    return replace_leaves(ensemble, values)


def arrival(ensemble: Ensemble, encoders: list[dict[str, np.ndarray]]) -> float:
    """The largest difference between encoders and the layers that they started."""
    found, worst = leaves(ensemble), 0.0
    for number, encoder in enumerate(encoders):
        members, rows = encoder["kernel"].shape[:2]
        kernel = np.asarray(found[f"layers.{number}.kernel"])[:members, :rows]
        bias = np.asarray(found[f"layers.{number}.bias"])[:members]
        worst = max(
            worst,
            float(np.abs(kernel - encoder["kernel"]).max()),
            float(np.abs(bias - encoder["bias"]).max()),
        )
    return worst
