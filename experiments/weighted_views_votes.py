"""What views say together: votes whose weights are fitted on validation rows."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from ensjax import combine
from ensjax.predictions import Predictions
from ensjax.provenance import check_fitting_rows

EQUAL, BY_ACCURACY = "equal vote", "vote by accuracy"
BY_ODDS, BY_NLL = "vote by log-odds", "vote by NLL"
CHOSEN, PUBLISHED = "best view on validation", "published weights"
VOTES = (EQUAL, BY_ACCURACY, BY_ODDS, BY_NLL)


def systems(names, *, with_published: bool = False) -> tuple[str, ...]:
    """The views and what is made of them, in the order of `judge`."""
    return (*names, *VOTES, CHOSEN, *([PUBLISHED] if with_published else []))


def judge(said, labels, split, names, *, published=None) -> dict[str, np.ndarray]:
    """The class that every system names for the test rows of a split.

    Weights and the choice of a view are fitted on the validation rows; predictions
    carry their provenance, so that rows which meet raise `LeakageError`.

    Args:
        said: logits of all rows, `[view, example, class]`.
        labels: `[example]`.
        split: with the parts "train", "validation" and "test"; members were trained on
            the first.
        names: of the views.
        published: weights `[view]` that are given, for one more vote; None: without.

    Returns:
        `votes [system, test row]`, `weights [rule, view]` of the votes that are fitted,
        and `validation [view]`, accuracies.
    """

    def part(name):
        return Predictions.from_logits(
            np.asarray(said)[:, split[name]],
            names=names,
            provenance=split.provenance(name),
        )

    held_out, test = part("validation"), part("test")
    truth = np.asarray(labels)[split["validation"]]
    fitted_rows = check_fitting_rows(
        "the weights of the votes", held_out.provenance, names=held_out.names
    )
    fitted_rows.check_test(test.provenance)
    # Checked once, here: as part of the compiled program each split would compile anew.
    bare = [predictions.replace(provenance=None) for predictions in (held_out, test)]
    weights, accuracy, pooled = _fit_and_pool(*bare, truth)
    named = [*np.asarray(test.votes), *np.asarray(pooled).argmax(axis=2)]
    named.append(named[int(np.argmax(accuracy))])
    if published is not None:
        probs = special.softmax(np.asarray(said)[:, split["test"]], axis=-1)
        named.append(np.einsum("v,vnc->nc", np.asarray(published), probs).argmax(-1))
    return {
        "votes": np.stack(named),
        "weights": np.asarray(weights),
        "validation": np.asarray(accuracy),
    }


@jax.jit
def _fit_and_pool(held_out, test, truth):
    """Weights `[rule, view]`, accuracies, and `[vote, test row, class]`."""
    by_accuracy = combine.fit_accuracy_vote(held_out, truth)
    fitted = [
        by_accuracy,
        combine.fit_log_odds_vote(held_out, truth),
        combine.fit_convex_weights(held_out, truth),
    ]
    pooled = [combine.mean_probs(test), *(vote(test).log_probs[0] for vote in fitted)]
    weights = jnp.stack([vote.weights for vote in fitted])
    return weights, by_accuracy.accuracy, jnp.stack(pooled)
