"""What soups, Fisher information and REPAIR send between eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensjax
from ensjax.mapping import MeshProgram
from ensjax.planning import read_collectives
from ensjax.weight_space import fisher_information, greedy_soup, learned_soup, repair

LEAVES = 4


def make_model(rngs):
    return ensjax.nn.MLP(in_features=3, hidden=(4,), num_outputs=2, rngs=rngs)


@pytest.fixture
def sent(monkeypatch):
    """`sent(run)`: what each program that `run()` calls sends along "member"."""

    def collectives(run):
        calls, call = [], MeshProgram.__call__

        def note(self, *args):
            calls.append((self, args))
            return call(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(MeshProgram, "__call__", note)
            run()
        found = []
        for program, args in calls:
            text = program.lower(*args).compile().as_text()
            across = [c for c in read_collectives(text, (8, 1, 1)) if c.axes]
            found.append({c.operation: c.count for c in across})
        return found

    return collectives


@pytest.fixture(scope="module")
def ensemble():
    mesh = ensjax.make_mesh(member=8)
    return ensjax.Ensemble.init(make_model, num_members=8, seed=0, mesh=mesh)


ROWS = (
    np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32),
    np.arange(16) % 2,
)


def test_a_greedy_soup_sends_each_candidate_and_its_score_once(ensemble, sent):
    alone, loop = sent(lambda: greedy_soup(ensemble, ROWS))
    assert set(alone) == {"reduce-scatter"} and alone["reduce-scatter"] <= LEAVES
    # The first member and its score; in the loop a candidate, all leaves together, and
    # its score.
    assert set(loop) == {"all-reduce"} and loop["all-reduce"] <= 4


def test_a_learned_soup_sums_mixtures_and_gradients_alone(ensemble, sent):
    learn, mix = sent(lambda: learned_soup(ensemble, ROWS, num_epochs=1))
    # The mixture, then its gradient with the loss; inner products of each leaf.
    assert learn.pop("all-reduce") <= 2
    assert learn.pop("all-gather") <= LEAVES and not learn
    assert mix.pop("reduce-scatter") <= LEAVES
    # The one mixture, cut out of eight, goes to all devices.
    assert mix.pop("all-reduce") == 1 and not mix


def test_fisher_information_and_repair_send_nothing(ensemble, sent):
    x = jnp.asarray(ROWS[0])
    assert sent(lambda: fisher_information(ensemble, x)) == [{}]
    found = sent(lambda: repair(ensemble, ensemble, np.eye(8), x))
    assert len(found) > 1 and not any(found), found
    assert len(jax.tree.leaves(ensemble.params)) == LEAVES
