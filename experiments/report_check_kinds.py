"""Untuned models of other kinds than the members of `report_check.py`, as one `Group`.

One of each kind for every seed; all kinds are trained by one program. They see what the
untuned members see, but are built differently.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ensjax
from ensjax.experiment.fields import load_beside
from ensjax.nn import MLP

training = load_beside(__file__, "report_check_training")

# Ids of the kinds, behind those of members, domains and the reader.
FIRST_ID, KIND_STRIDE = 2**15, 2**8


class TwoTowers(nnx.Module):
    """Image and report are embedded apart; their scaled product says if they match.

    Source: Radford et al. 2021, arXiv:2103.00020, figure 3.
    """

    def __init__(self, *, num_image, num_report, hidden, width, rngs):
        self.num_image = num_image
        tower = functools.partial(MLP, hidden=hidden, num_outputs=width, rngs=rngs)
        self.image, self.report = (
            tower(in_features=number) for number in (num_image, num_report)
        )
        self.log_scale = nnx.Param(jnp.log(jnp.asarray(10.0)))
        self.shift = nnx.Param(jnp.zeros(()))

    def __call__(self, x):
        """Logits of "match" and "mismatch", `[batch, 2]`."""
        image = self.image(x[:, : self.num_image])
        report = self.report(x[:, self.num_image :])
        # A report without findings may be embedded at 0, where a norm has no gradient.
        norms = (jnp.sum(t**2, axis=-1) + 1e-6 for t in (image, report))
        cosine = jnp.sum(image * report, axis=-1) / jnp.sqrt(math.prod(norms))
        match = jnp.exp(self.log_scale[...]) * cosine + self.shift[...]
        return jnp.stack([match, jnp.zeros_like(match)], axis=-1)


KINDS = ("linear", "one wide layer", "two towers")


def make_kinds(config):
    """Name of each kind of the config to what builds one, `make(rngs=...)`."""
    settings = config.reports
    num_report = 3 * settings.num_findings
    num_image = settings.num_features
    plain = functools.partial(
        MLP, in_features=num_image + num_report, num_outputs=training.NUM_MATCH
    )
    width = max(config.hidden)
    known = {
        "linear": functools.partial(plain, hidden=()),
        "one wide layer": functools.partial(plain, hidden=(4 * width,)),
        "two towers": functools.partial(
            TwoTowers,
            num_image=num_image,
            num_report=num_report,
            hidden=(width,),
            width=max(width // 2, 1),
        ),
    }
    return {name: known[name] for name in config.kinds}


def train(config, rows, run_dir) -> dict[str, np.ndarray]:
    """Trains one of each kind for every seed.

    Returns:
        "logits" on the held-out rows of their own seed, `[seed, domain, kind, row, 2]`,
        and the kinds' "names".
    """
    x, y = rows.general
    mesh = ensjax.make_mesh(**config.mesh.to_dict())
    kinds, seeds = make_kinds(config), range(config.num_seeds)
    group = ensjax.Group(
        tuple(
            ensjax.Ensemble.init(
                lambda rngs, make=make: make(rngs=rngs),
                member_ids=[
                    training.SEED_STRIDE * seed + FIRST_ID + KIND_STRIDE * number
                    for seed in seeds
                ],
                seed=config.seed,
                mesh=mesh,
            )
            for number, make in enumerate(kinds.values())
        )
    )
    own = training.own_rows(np.tile(seeds, len(kinds)), len(seeds), x.shape[1])
    group, _ = ensjax.fit(
        group,
        (x.reshape(-1, x.shape[-1]), y.reshape(-1)),
        loss=training.match_loss,
        make_tx=optax.adam,
        hyper=config.learning_rate,
        steps=config.untuned_steps,
        batch_size=config.batch_size,
        seed=config.seed,
        sampling="weighted",
        weights=own,
        steps_per_call=config.steps_per_call,
        log_every_steps=config.steps_per_call,
        block=config.block,
        checkpoint_dir=run_dir.checkpoints / "kinds",
        logger=run_dir.logger("kinds"),
        save_every_steps=config.untuned_steps,
    )
    held_out = rows.held_out[0]
    logits = [
        training.logits_of_seeds(ensemble, held_out, per_seed=1)[:, :, 0]
        for ensemble in group.ensembles
    ]
    return {"logits": np.stack(logits, axis=2), "names": np.array(list(kinds))}
