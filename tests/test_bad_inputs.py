"""The list of bad inputs: each is one line that names it, and nothing is changed.

On the command line the exit code is 2; in Python it is a `ValueError` or `TypeError`.
Commands run in this process; what `ensjax run` does in a child is done here.
"""

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ensjax
from ensjax import Ensemble, cli, combine, losses, nn, reduce, scores
from ensjax.experiment.run_directory import open_run
from ensjax.mapping import map_members
from ensjax.predictions import Predictions

TOY_FOLDER = Path(__file__).parent / "experiment" / "toy"
TOY = str(TOY_FOLDER / "configs" / "toy.py")
RUN = ("run", f"{TOY}:smoke", "--workdir", "w")


def snapshot(folder):
    """Every path below the folder, and what the files hold."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


# Each of these makes something in the folder before the command.


def nothing():
    """An empty folder."""


def a_file(name, text="x"):
    def make():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)

    return make


def a_config(text):
    """`mine/configs/mine.py`, with the toy's experiment beside it."""

    def make():
        a_file("mine/configs/mine.py", text)()
        a_file(
            "mine/experiments/toy.py", (TOY_FOLDER / "experiments/toy.py").read_text()
        )()
        a_file("mine/experiments/lazy.py", "PAPER = 'none'\n")()
        a_file("mine/experiments/broken.py", "import nothing_of_this_name\n")()

    return make


def toy_with(change):
    return a_config(
        f"{Path(TOY).read_text()}\n\n_get = get_config\n\n\n"
        f"def get_config(preset):\n    config = _get(preset)\n    {change}\n"
        "    return config\n"
    )


def a_run(*damage, finished=True):
    """A run `w` of the toy; then files are replaced by what is given."""

    def make():
        assert cli.main(list(RUN)) == 0
        if not finished:
            Path("w/results.json").unlink()
        for name, content in damage:
            path = Path("w", name)
            if content is None:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(content)

    return make


def another_run():
    open_run("w", {"experiment": "toy", "seed": 9}, versions={}).close()


MINE = ("run", "mine/configs/mine.py:smoke", "--workdir", "w")
NO_RESULTS = '{"experiment": "toy"}'


class Command(NamedTuple):
    """A command line in a folder that was prepared, and words of its one line."""

    prepare: Any
    arguments: tuple[str, ...]
    words: str


def deep(*overrides):
    return ("run", "deep_ensemble_digits:smoke", "--workdir", "w", *overrides)


COMMANDS = {
    # What is typed.
    "no command": Command(nothing, (), "COMMAND"),
    "unknown command": Command(nothing, ("trian",), "invalid choice: 'trian'"),
    "unknown option": Command(nothing, (*RUN, "--seed", "3"), "arguments: --seed 3"),
    "number as text": Command(nothing, (*RUN, "--devices", "two"), "value: 'two'"),
    "no devices": Command(nothing, (*RUN, "--devices", "0"), "--devices must be"),
    "unknown logger": Command(nothing, (*RUN, "--log", "tensorbord"), "'tensorbord'"),
    "unknown benchmark": Command(nothing, ("bench", "engin"), "nearest is 'engine'"),
    "copy unknown": Command(nothing, ("copy", "deep_ensembl"), "is 'deep_ensemble'"),
    "half of the process flags": Command(
        nothing, (*RUN, "--coordinator", "h:1"), "--num_processes and --process_id"
    ),
    "coordinator without port": Command(
        nothing,
        (*RUN, "--coordinator", "h", "--num_processes", "2", "--process_id", "0"),
        "--coordinator must be HOST:PORT of process 0; got 'h'",
    ),
    "process number": Command(
        nothing,
        (*RUN, "--coordinator", "h:1", "--num_processes", "2", "--process_id", "2"),
        "--process_id must lie in 0..1",
    ),
    # The config.
    "unknown config": Command(nothing, ("run", "deep_ensembl"), "is 'deep_ensemble'"),
    "config file missing": Command(nothing, ("run", "no/x.py"), "config file no/x.py"),
    "unknown preset": Command(nothing, ("run", TOY + ":big"), "unknown preset 'big'"),
    "key mistyped": Command(
        nothing, (*RUN, "--config.num_member=3"), "nearest is 'num_members'"
    ),
    "key without a value": Command(nothing, (*RUN, "--config.seed"), "needs a value"),
    "value of another type": Command(
        nothing, (*RUN, "--config.num_members=few"), "config.num_members is of type int"
    ),
    "section set": Command(
        nothing, (*RUN, "--config.optimizer=adam"), "config.optimizer is a section"
    ),
    "no members": Command(
        nothing, (*RUN, "--config.num_members=0"), "config.num_members must be at least"
    ),
    "mesh axis of 0": Command(
        nothing, (*RUN, "--config.mesh.data=0"), "config.mesh.data must be at least 1"
    ),
    "mesh too large": Command(
        nothing, (*RUN, "--config.mesh.member=99"), "does not fit 8 device(s)"
    ),
    "two free mesh axes": Command(
        nothing, (*RUN, "--config.mesh.data=-1"), "one axis of config.mesh can be -1"
    ),
    "unknown mesh axis": Command(toy_with("config.mesh.time = 2"), MINE, "got 'time'"),
    "config that is no Python": Command(
        a_config("def get_config(:\n"), MINE, "mine.py line 1: SyntaxError"
    ),
    "config that fails": Command(
        toy_with("config.seed = 1 / 0"), MINE, "ZeroDivisionError: division by zero"
    ),
    "config without get_config": Command(
        a_config("seed = 0\n"), MINE, "mine.py defines no get_config"
    ),
    "config that is a dict": Command(
        a_config("def get_config(preset):\n    return {'seed': 0}\n"),
        MINE,
        "must return an ml_collections.ConfigDict",
    ),
    "config with a function": Command(
        toy_with("config.optimizer.make = print"), MINE, "config.optimizer.make: "
    ),
    "unknown experiment": Command(
        toy_with("config.experiment = 'toi'"), MINE, "no experiment named 'toi'"
    ),
    "experiment without run": Command(
        toy_with("config.experiment = 'lazy'"), MINE, "lazy.py defines no run(config"
    ),
    "experiment without its package": Command(
        toy_with("config.experiment = 'broken'"), MINE, "'nothing_of_this_name'"
    ),
    # An experiment's own fields, before anything is computed.
    "model": Command(nothing, deep("--config.model.name=cnm"), "config.model.name"),
    "data set": Command(nothing, deep("--config.data.name=mnist"), "config.data.name"),
    "optimizer": Command(
        nothing, deep("--config.optimizer.name=sgdd"), "config.optimizer.name"
    ),
    "sampling": Command(nothing, deep("--config.sampling=all"), "got 'all'"),
    "interval": Command(
        nothing, deep("--config.save_every_steps=7"), "save_every_steps"
    ),
    "learning rates": Command(
        nothing,
        deep("--config.optimizer.learning_rate=(0.1,0.2)"),
        "config.optimizer.learning_rate",
    ),
    "batch larger than the data": Command(
        nothing, deep("--config.batch_size=100000"), "config.batch_size"
    ),
    # The run directory.
    "workdir is a file": Command(a_file("w"), RUN, "w is a file"),
    "workdir below a file": Command(
        a_file("w"), (*RUN[:-1], "w/run"), "cannot write w/run"
    ),
    "unwritable workdir": Command(
        nothing, (*RUN[:-1], "/proc/ensjax"), "cannot write /proc/ensjax"
    ),
    "workdir of other files": Command(
        a_file("w/notes.txt"), RUN, "holds files but no config.json"
    ),
    "workdir of another run": Command(another_run, RUN, "w holds another run: config."),
    "resume with another config": Command(
        a_run(finished=False), (*RUN, "--config.seed=1"), "config.seed is 0 there and 1"
    ),
    "config.json cut short": Command(
        a_run(("config.json", '{"seed": 0'), finished=False),
        RUN,
        "w/config.json holds no valid JSON",
    ),
    "config.json of bytes": Command(
        a_run(("config.json", b"\xff\xfe\x00"), finished=False),
        RUN,
        "w/config.json holds no valid JSON",
    ),
    "config.json is a list": Command(
        a_run(("config.json", "[1, 2]"), finished=False), RUN, "w/config.json"
    ),
    "versions.json cut short": Command(
        a_run(("versions.json", '{"jax'), finished=False),
        RUN,
        "w/versions.json holds no valid JSON",
    ),
    # The resumed run has steps to log.
    "metrics.jsonl of bytes": Command(
        a_run(("metrics.jsonl", b"\xff{\n"), ("checkpoints/20", None), finished=False),
        RUN,
        "w/metrics.jsonl",
    ),
    "metrics.jsonl with a step that is text": Command(
        a_run(
            ("metrics.jsonl", '{"step": "one"}\n'),
            ("checkpoints/20", None),
            finished=False,
        ),
        RUN,
        "w/metrics.jsonl",
    ),
    # Reports.
    "report of nothing": Command(nothing, ("report", "w"), "w is no run of ensjax"),
    "report of an unfinished run": Command(
        a_run(finished=False), ("report", "w"), "w is not finished"
    ),
    "results.json cut short": Command(
        a_run(("results.json", "{")), ("report", "w"), "w/results.json holds no valid"
    ),
    "results.json of bytes": Command(
        a_run(("results.json", b"\xff\x00")), ("report", "w"), "w/results.json holds no"
    ),
    "results.json without claims": Command(
        a_run(("results.json", NO_RESULTS)), ("report", "w"), "w/results.json"
    ),
    "comparison with results without claims": Command(
        a_run(("results.json", NO_RESULTS)), ("report", "w", "w"), "w/results.json"
    ),
    "report.json cut short": Command(
        a_run(("report.json", "{")), ("report", "w"), "w/report.json holds no valid"
    ),
    "report.json is a number": Command(
        a_run(("report.json", "3")), ("report", "w"), "w/report.json"
    ),
    "figure gone": Command(
        a_run(("figures/coins.png", None)), ("report", "w"), "w/figures/coins.png is"
    ),
    "comparison to nowhere": Command(
        a_run(), ("report", "w", "w", "--out", "no/where.html"), "no/where.html"
    ),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_bad_command_is_one_line_with_exit_code_2(name, folder, monkeypatch, capfd):
    # The child's part of `ensjax run`, without the child.
    monkeypatch.setattr(cli, "is_child", lambda: True)
    monkeypatch.setattr(cli, "prepare_child", lambda: None)
    prepare, arguments, words = COMMANDS[name]
    prepare()
    capfd.readouterr()
    before = snapshot(folder)
    try:
        code = cli.main(list(arguments))
    except SystemExit as end:
        code = end.code
    output = capfd.readouterr()
    assert words in output.err
    assert output.err.startswith("ensjax") and output.err.count("\n") == 1
    assert code == 2
    assert output.out == ""
    assert snapshot(folder) == before
    assert not os.path.exists("/proc/ensjax")


# In Python. What several rows need is made once.

X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
Y = np.arange(12) % 3
NAN = np.where(np.arange(12)[:, None] == 5, np.nan, X).astype(np.float32)


def mlp(seed=0, hidden=(8,), **options):
    rngs = nnx.Rngs(params=seed, dropout=seed)
    return nn.MLP(in_features=4, hidden=hidden, num_outputs=3, rngs=rngs, **options)


def make_mlp(rngs):
    return nn.MLP(in_features=4, hidden=(8,), num_outputs=3, rngs=rngs)


def make_wider_mlp(rngs):
    return nn.MLP(in_features=4, hidden=(9,), num_outputs=3, rngs=rngs)


@pytest.fixture(scope="module")
def ensemble():
    return Ensemble.stack([mlp(0), mlp(1)], mesh=ensjax.make_mesh(member=1))


@pytest.fixture(scope="module")
def saved(ensemble, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "ensemble"
    ensemble.save(path)
    return path


def fit(ensemble, data=(X, Y), **options):
    given = dict(
        loss=losses.cross_entropy,
        make_tx=optax.sgd,
        hyper=0.1,
        steps=2,
        batch_size=4,
        checkpoint_dir="run",
    )
    return ensjax.fit(ensemble, data, **{**given, **options})


def load_damaged(saved, damage):
    """Loads a copy with one file damaged, which stays as it is."""
    shutil.copytree(saved, "copy")
    damage(Path("copy"))
    with unchanged("copy"):
        Ensemble.load("copy")


def resume(ensemble, damage=None, other=None, **changes):
    """Trains and saves; then the same again, but for some changes."""
    with contextlib.redirect_stdout(None):
        fit(ensemble, steps=4, steps_per_call=2, save_every_steps=2)
    for checkpoint in Path("run").glob("[0-9]*"):
        if damage is not None:
            damage(checkpoint)
    with unchanged("run"):
        fit(other or ensemble, steps=4, steps_per_call=2, save_every_steps=2, **changes)


@contextlib.contextmanager
def unchanged(name):
    """The folder `name` has the same content after an error; then it is removed."""
    before = snapshot(Path(name))
    try:
        yield
    finally:
        assert snapshot(Path(name)) == before
        shutil.rmtree(name)


LOGITS = jnp.zeros((2, 5, 3))

CALLS = {
    # Making ensembles.
    "no models": (lambda e, s: Ensemble.stack([]), "at least one member; got 0"),
    "no module": (lambda e, s: Ensemble.stack([mlp(), X]), "got ndarray"),
    "models of other shapes": (
        lambda e, s: Ensemble.stack([mlp(), mlp(hidden=(9,))]),
        "in tree 0 but float32",
    ),
    "models of other depth": (
        lambda e, s: Ensemble.stack([mlp(), mlp(hidden=(8, 8))]),
        "is in tree",
    ),
    "models of other dropout": (
        lambda e, s: Ensemble.stack([mlp(dropout=0.1), mlp(dropout=0.2)]),
        "Model 1 is built differently from model 0",
    ),
    "stack of unequal rows": (
        lambda e, s: Ensemble.from_apply(
            print, {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}
        ),
        "['w'] has shape (2, 3), but its first axis must hold 3 members",
    ),
    "stack of nothing": (
        lambda e, s: Ensemble.from_apply(print, {}),
        "stacked_params needs arrays",
    ),
    "init of no members": (
        lambda e, s: Ensemble.init(make_mlp, num_members=0),
        "at least one member; got 0",
    ),
    "ids that repeat": (
        lambda e, s: Ensemble.init(make_mlp, member_ids=[1, 1]),
        "member_ids must lie from 0 to",
    ),
    "ids that are floats": (
        lambda e, s: e.with_ids([0.5, 1.5]),
        "member_ids are integers [member]",
    ),
    "ids too few": (lambda e, s: e.with_ids([0]), "2 members but 1 member_ids"),
    # Using them.
    "mask of another length": (
        lambda e, s: e.select(np.ones(3, bool)),
        "A mask over members has shape (2,); got (3,)",
    ),
    "nothing selected": (lambda e, s: e.select([]), "holds no member"),
    "another architecture joined": (
        lambda e, s: e.concatenate(Ensemble.stack([mlp(hidden=(9,))])),
        "different architecture",
    ),
    "inputs of other features": (
        lambda e, s: e(np.zeros((5, 7), np.float32)),
        "examples must have 4 entries behind a batch axis; got shape (5, 7)",
    ),
    "prediction in batches of 0": (
        lambda e, s: ensjax.predict(e, X, batch_size=0),
        "batch_size",
    ),
    "prediction of nothing": (
        lambda e, s: ensjax.predict(e, X[:0], batch_size=4),
        "of one length, at least 1",
    ),
    # Training them.
    "no examples": (lambda e, s: fit(e, (X[:0], Y[:0])), "data[0] must be [example"),
    "data that is NaN": (lambda e, s: fit(e, (NAN, Y)), "data[0] holds NaN"),
    "labels too few": (lambda e, s: fit(e, (X, Y[:9])), "data[0]: 12, data[1]: 9"),
    "labels that are floats": (lambda e, s: fit(e, (X, Y / 2)), "integer labels"),
    "labels out of range": (
        lambda e, s: fit(e, (X, Y + 1)),
        "labels",
    ),
    "labels below zero": (lambda e, s: fit(e, (X, Y - 1)), "labels"),
    "batch larger than data": (
        lambda e, s: fit(e, batch_size=13),
        "batch_size must be from 1 to the 12",
    ),
    "interval": (
        lambda e, s: fit(e, steps_per_call=2, save_every_steps=3),
        "save_every_steps=3 must be a multiple of",
    ),
    # Files.
    "save over a file": (lambda e, s: e.save(s), "exists; choose another path"),
    "save below a file": (
        lambda e, s: e.save(s / "architecture.pkl" / "x"),
        "architecture.pkl",
    ),
    "load of nothing": (
        lambda e, s: Ensemble.load("none"),
        "no saved ensemble at none",
    ),
    "load of another folder": (
        lambda e, s: Ensemble.load(Path(__file__).parent),
        "tests",
    ),
    "load with another architecture": (
        lambda e, s: Ensemble.load(s, make_model=make_wider_mlp),
        "for each member in",
    ),
    "architecture cut short": (
        lambda e, s: load_damaged(
            s, lambda p: (p / "architecture.pkl").write_bytes(b"\x80\x05")
        ),
        "architecture.pkl",
    ),
    "architecture gone": (
        lambda e, s: load_damaged(s, lambda p: (p / "architecture.pkl").unlink()),
        "architecture.pkl",
    ),
    "resume with another architecture": (
        lambda e, s: resume(
            e, other=Ensemble.stack([mlp(hidden=(9,)), mlp(hidden=(9,))])
        ),
        "blocks.0.linear",
    ),
    "resume with another seed": (lambda e, s: resume(e, seed=1), "seed"),
    "checkpoints of bytes": (
        lambda e, s: resume(
            e, lambda p: (p / "meta" / "metadata").write_bytes(b"\xff{")
        ),
        "checkpoint",
    ),
    # Devices.
    "mesh larger than the devices": (
        lambda e, s: ensjax.make_mesh(member=4, data=4),
        "needs 16 devices, but there are 8",
    ),
    "mesh that does not divide": (
        lambda e, s: ensjax.make_mesh(data=3),
        "does not divide 8",
    ),
    "mesh of two free axes": (
        lambda e, s: ensjax.make_mesh(data=-1),
        "Only one mesh axis may be -1",
    ),
    "unknown kind": (
        lambda e, s: map_members(print, kinds=("members",)),
        "Unknown kind 'members'",
    ),
    # Predictions and scores.
    "logits of one model": (
        lambda e, s: Predictions.from_logits(LOGITS[0]),
        "logits must be [member, batch, class]; got shape (5, 3)",
    ),
    "labels one-hot": (
        lambda e, s: scores.nll(LOGITS, jnp.zeros((5, 3))),
        "labels must be integers",
    ),
    "labels of other rows": (
        lambda e, s: scores.nll(LOGITS, jnp.zeros(4, int)),
        "labels must have shape (5,)",
    ),
    "calibration without rows": (
        lambda e, s: combine.calibrate(LOGITS[:, :0], jnp.zeros(0, int)),
        "on at least one held-out row",
    ),
    "members of another shape": (
        lambda e, s: reduce.update_extremes(
            reduce.init_extremes({"t": X[0]}), {"t": X[:, :2]}
        ),
        "['t'] has shape (12, 2)",
    ),
}


@pytest.mark.filterwarnings("ignore:.*not finite")
@pytest.mark.parametrize("name", list(CALLS))
def test_a_bad_call_is_one_line_that_names_it(name, folder, ensemble, saved):
    call, words = CALLS[name]
    stored = snapshot(saved)
    with pytest.raises((ValueError, TypeError)) as error:
        call(ensemble, saved)
    assert words in str(error.value)
    assert re.search(r"\n", str(error.value)) is None
    assert snapshot(folder) == {}
    assert snapshot(saved) == stored


def test_the_list_is_long_enough():
    assert len(COMMANDS) + len(CALLS) >= 40
