"""Folders merged in blocks: as the method merges the stack, in little memory."""

import json
import os
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from ensjax import interop
from ensjax.interop import WeightsError, tensor_blocks
from ensjax.interop.ranks import streamed_kth_largest
from ensjax.weight_space import METHODS
from ensjax.weight_space.pruning import entry_draws, kth_largest

pytest.importorskip("safetensors")

SHAPES = {"conv": (8, 4, 3, 3), "dense": (32, 40), "bias": (32,), "scale": ()}
NUM_MEMBERS = 4


def noise(seed):
    rng = np.random.default_rng(seed)
    return {n: np.asarray(rng.normal(size=s), np.float32) for n, s in SHAPES.items()}


def tuned(base, common, own):
    """A member that has moved from the base, in part as all others."""
    return {n: np.asarray(base[n] + 0.1 * (common[n] + own[n])) for n in base}


BASE = noise(99)
MEMBERS = [tuned(BASE, noise(98), noise(seed)) for seed in range(NUM_MEMBERS)]
FISHER = [{n: x * x for n, x in member.items()} for member in MEMBERS]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders z, m0, m1, ... and f0, ... of Fisher information."""
    folder = tmp_path_factory.mktemp("weights")
    interop.write_weights(folder / "z", BASE)
    for i, (member, fisher) in enumerate(zip(MEMBERS, FISHER)):
        interop.write_weights(folder / f"m{i}", member, max_shard_size=3000)
        interop.write_weights(folder / f"f{i}", fisher)
    return folder


@pytest.fixture
def small_blocks(monkeypatch):
    """1024 entries a block, so that the larger tensors have several."""
    monkeypatch.setattr(tensor_blocks, "_LEAST_BYTES", 1)
    monkeypatch.setattr(tensor_blocks, "_MOST_BYTES", 1)


def stack(models):
    return {name: np.stack([m[name] for m in models]) for name in models[0]}


def to_flax(tree, lead):
    """`[out, in, *tap]` as `[*tap, in, out]`, where `weight_space` looks for units."""

    def turned(x):
        axes = list(range(lead, x.ndim))
        return (
            x if len(axes) < 2 else x.transpose(*range(lead), *axes[2:], *axes[1::-1])
        )

    return {name: turned(x) for name, x in tree.items()}


def from_flax(tree):
    def turned(x):
        return x if x.ndim < 2 else x.transpose(-1, -2, *range(x.ndim - 2))

    return {name: turned(np.asarray(x)) for name, x in tree.items()}


def units_last(tree, lead):
    """As DELLA's draws are numbered: the units' axis moved to the end."""
    return {
        n: np.moveaxis(x, lead, -1) if x.ndim > lead else x for n, x in tree.items()
    }


def units_first(tree):
    return {
        n: np.moveaxis(np.asarray(x), -1, 0) if np.ndim(x) else np.asarray(x)
        for n, x in tree.items()
    }


CASES = [
    ("average", {}, False),
    ("average", {"weights": [1.0, 2.0, 0.0, 4.0], "normalize": False}, False),
    ("task_arithmetic", {"lam": 0.4, "weights": [1.0, -1.0, 2.0, 0.5]}, True),
    ("ties", {}, True),
    ("ties", {"scope": "leaf", "density": [0.1, 0.3, 0.5, 1.0]}, True),
    ("breadcrumbs", {"density": 0.3, "gamma": 0.1}, True),
    ("breadcrumbs_ties", {"density": 0.4, "scope": "global"}, True),
    ("dare", {"drop": 0.5}, True),
    ("dare_ties", {"drop": [0.5, 0.6, 0.7, 0.8]}, True),
    ("della", {"density": 0.5}, True),
    ("della_linear", {"density": 0.5, "epsilon": 0.2}, True),
    ("sce", {"density": 0.2, "lam": 0.7}, True),
    ("nearswap", {"t": 0.05}, False),
    ("slerp", {"t": 0.3, "parallel": 1.0}, False),
    ("slerp", {"t": 0.3, "scope": "output"}, False),
    ("nuslerp", {"t": 0.2, "scope": "global"}, True),
    ("multislerp", {"weights": [1.0, 2.0, 3.0, 4.0]}, False),
    ("karcher_mean", {"scope": "input"}, True),
    ("model_stock", {}, True),
    ("fisher", {"weights": [1.0, 2.0, 3.0, 4.0]}, False),
    ("fisher", {"normalize": True}, False),
]


def in_memory(method, knobs, with_base, skip):
    """What `weight_space` makes of all members at once."""
    own = METHODS[method]
    stacked, base = stack(MEMBERS[: own.num_members]), dict(BASE)
    for name in skip:
        del stacked[name], base[name]
    back = dict
    if method.startswith("della"):
        stacked, base, back = units_last(stacked, 1), units_last(base, 0), units_first
    elif knobs.get("scope") in ("output", "input"):
        stacked, base, back = to_flax(stacked, 1), to_flax(base, 0), from_flax
    arguments = [stacked] + [base] * with_base
    arguments += [stack(FISHER)] if own.statistics else []
    arguments += [jax.random.key(3)] if own.needs_key else []
    return back(jax.jit(lambda *a: own.merge(*a, **knobs))(*arguments))


# One of each way through the files; the dear ones of the same way are slow.
DEAR = ("breadcrumbs_ties", "dare_ties", "della", "della_linear", "karcher_mean")
DEAR += ("multislerp", "nuslerp")


@pytest.mark.parametrize(
    "method, knobs, with_base",
    [
        pytest.param(*case, marks=pytest.mark.slow) if case[0] in DEAR else case
        for case in CASES
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_streamed_merge_is_that_of_the_stack(
    place, tmp_path, small_blocks, method, knobs, with_base
):
    own = METHODS[method]
    # Sorting compiles slowly; files of flax are merged with all tensors below.
    skip = ["conv", "scale"] if method.startswith("della") else []
    told = []
    members = [place / f"m{i}" for i in range(own.num_members or NUM_MEMBERS)]
    interop.merge_folders(
        members,
        tmp_path / "out",
        method=method,
        knobs=knobs,
        base=place / "z" if with_base else None,
        fisher=[place / f"f{i}" for i in range(NUM_MEMBERS)] if own.statistics else (),
        seed=3,
        skip=skip,
        report=lambda done, total: told.append(done / total),
    )
    expected = in_memory(method, knobs, with_base, skip)
    found = interop.read_stacked([tmp_path / "out"])
    assert set(found) == set(expected)
    for name, x in expected.items():
        # Coefficients on circles come from sums of 1200 products.
        np.testing.assert_allclose(found[name][0], x, rtol=1e-6, atol=2e-6)
    # How much is left to read is known from the first block.
    assert told[-1] == 1.0 and told == sorted(set(told))
    # The merge is none of the members, nor the base.
    for other in (*MEMBERS, BASE):
        assert np.abs(found["dense"][0] - other["dense"]).max() > 1e-3


def test_every_method_that_needs_no_data_is_streamed():
    assert {method for method, _, _ in CASES} == set(METHODS) - {"regmean"}
    with pytest.raises(
        ValueError, match=r"method is one of average, .*; got 'regmean'"
    ):
        interop.merge_folders(["a", "b"], "out", method="regmean")


@pytest.mark.slow
def test_files_of_flax_have_their_units_on_the_last_axis(place, tmp_path, small_blocks):
    for i, member in enumerate(MEMBERS):
        metadata = {"format": "flax"}
        turned = to_flax(member, 0)
        interop.write_weights(tmp_path / f"m{i}", turned, metadata=metadata)
    base = to_flax(BASE, 0)
    interop.write_weights(tmp_path / "z", base)
    stacked = stack([to_flax(m, 0) for m in MEMBERS])
    folders = [tmp_path / f"m{i}" for i in range(NUM_MEMBERS)]
    for method, knobs in (
        ("della_linear", {"density": 0.5}),
        ("model_stock", {"scope": "output"}),
        ("multislerp", {"scope": "input"}),
    ):
        out = tmp_path / method
        lineage = interop.merge_folders(
            folders, out, base=tmp_path / "z", method=method, knobs=knobs
        )
        assert lineage["layout"] == "flax"
        own = METHODS[method]
        keys = [jax.random.key(0)] if own.needs_key else []
        expected = jax.jit(lambda *a: own.merge(*a, **knobs))(stacked, base, *keys)  # noqa: B023
        found = interop.read_stacked([out])
        for name, x in expected.items():
            np.testing.assert_allclose(found[name][0], x, rtol=1e-6, atol=2e-6)


def test_ranks_in_two_passes_are_those_of_all_numbers():
    rng = np.random.default_rng(0)
    values = np.abs(rng.normal(size=(3, 500))).astype(np.float32)
    values[0, 100:200] = values[0, 7]  # equal ones
    values[1, ::2] = 0.0
    values[2, :3] = [np.inf, np.nan, 1e-42]
    counts = np.array([[0, 1, 2], [150, 249, 3], [500, 500, 500], [1, 250, 499]])
    found = streamed_kth_largest(
        lambda: np.split(values, [7, 300], axis=1), lambda positive: counts
    )
    expected = [kth_largest([values], np.asarray(own, np.int32)) for own in counts]
    np.testing.assert_array_equal(found, np.stack(expected))
    by_sorting = -np.sort(-values[0])
    assert found[1, 0] == by_sorting[149] and found[3, 0] == by_sorting[0]


def test_draws_of_some_entries_are_those_of_the_whole_tensor():
    key, ids = jax.random.key(5), np.arange(2)
    whole = entry_draws(["x"], [np.zeros((2, 30, 40))], key, ids)[0]
    number = np.arange(1200, dtype=np.uint32).reshape(30, 40)[4:6, ::3]
    pair = np.zeros_like(number), number
    part = entry_draws(["x"], [np.zeros((2, *number.shape))], key, ids, [pair])[0]
    np.testing.assert_array_equal(part, whole[:, 4:6, ::3])
    beyond = entry_draws(
        ["x"], [np.zeros((2, *number.shape))], key, ids, [(pair[0] + 1, number)]
    )[0]
    assert np.mean(np.asarray(beyond) == np.asarray(part)) < 0.01


def test_equal_members_change_nothing_in_any_type(tmp_path):
    rng = np.random.default_rng(0)
    for dtype in (np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
        name = np.dtype(dtype).name
        weights = {"x": rng.normal(size=(7, 5)).astype(dtype)}
        folders = [tmp_path / f"{name}-{i}" for i in range(3)]
        for folder in folders:
            interop.write_weights(folder, weights)
        for method, base in (("average", None), ("ties", folders[0])):
            out = tmp_path / f"{name}-{method}"
            knobs = {"density": 1.0} if method == "ties" else {}
            interop.merge_folders(folders, out, method=method, base=base, knobs=knobs)
            found = interop.read_stacked([out])["x"][0]
            assert found.dtype == dtype
            assert found.tobytes() == weights["x"].tobytes()


@pytest.mark.parametrize("scope", ["leaf", "output", "input", "global"])
def test_an_end_of_a_circle_is_that_member_whatever_the_other_holds(
    place, tmp_path, small_blocks, scope
):
    broken = {n: np.full_like(x, np.nan) for n, x in MEMBERS[1].items()}
    interop.write_weights(tmp_path / "broken", broken)
    members, out = [place / "m0", tmp_path / "broken"], tmp_path / "out"
    knobs = {"t": 0.0, "scope": scope}
    interop.merge_folders(
        members, out, method="slerp", knobs=knobs, allow_non_finite=True
    )
    for name, x in interop.read_stacked([out]).items():
        np.testing.assert_array_equal(x[0], MEMBERS[0][name])


def test_bfloat16_is_summed_in_float32_and_rounded_once(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12, 200)).astype(ml_dtypes.bfloat16)
    folders = [tmp_path / f"m{i}" for i in range(12)]
    interop.write_members(folders, {"x": rows})
    interop.merge_folders(folders, tmp_path / "out")
    found = interop.read_stacked([tmp_path / "out"])["x"][0]
    exact = rows.astype(np.float64).mean(0)
    # Half a unit in the last place of 8 bits.
    assert (np.abs(found.astype(np.float64) - exact) <= np.abs(exact) * 2**-8).all()
    interop.merge_folders(folders, tmp_path / "wide", dtype="float32")
    found = interop.read_stacked([tmp_path / "wide"])["x"][0]
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-7)


def test_knobs_by_pattern_are_those_of_the_tensors_alone(place, tmp_path):
    folders = [place / "m0", place / "m1"]
    interop.merge_folders(
        folders,
        tmp_path / "out",
        knobs={"weights": [1.0, 3.0]},
        per_leaf={"^dense": {"weights": [1.0, 0.0]}, "e": {"weights": [0.0, 1.0]}},
    )
    found = interop.read_stacked([tmp_path / "out"])
    np.testing.assert_array_equal(found["dense"][0], MEMBERS[0]["dense"])
    np.testing.assert_array_equal(found["scale"][0], MEMBERS[1]["scale"])
    mean = 0.25 * MEMBERS[0]["bias"] + 0.75 * MEMBERS[1]["bias"]
    np.testing.assert_allclose(found["bias"][0], mean, rtol=1e-6, atol=1e-7)


def test_integers_ties_and_heads_are_copied_and_said_so(tmp_path):
    def write(name, head, step):
        weights = {
            "embed": np.full((3, 2), step, np.float32),
            "head": np.full((head, 2), step, np.float32),
            "steps": np.array(step),
        }
        ties = {"lm_head": "embed"}
        interop.write_weights(tmp_path / name, weights, ties=ties)
        return tmp_path / name

    a, b, c = write("a", 2, 1), write("b", 2, 3), write("c", 5, 8)
    lineage = interop.merge_folders([a, b], tmp_path / "out")
    assert lineage["ties"] == {"lm_head": "embed"}
    assert lineage["copied"] == {
        "steps": {"from": str(a), "why": "int64 is not averaged"}
    }
    with interop.open_weights(tmp_path / "out") as opened:
        assert opened.ties == {"lm_head": "embed"}
        assert opened.read("steps") == 1 and opened.read("head").max() == 2.0
    with pytest.raises(WeightsError, match=r"'head' has shape \[5, 2\] in .*c, but"):
        interop.merge_folders([a, c], tmp_path / "no")
    lineage = interop.merge_folders([a, c], tmp_path / "copied", copy_from=c)
    assert set(lineage["copied"]) == {"steps", "head"}
    found = interop.read_stacked([tmp_path / "copied"])
    assert found["head"].shape == (1, 5, 2) and found["steps"] == 8
    assert found["embed"].max() == 4.5
    lineage = interop.merge_folders([a, c], tmp_path / "less", skip=["head"])
    assert lineage["left_out"] == {"head": "as asked"}
    assert set(interop.read_stacked([tmp_path / "less"])) == {"embed", "steps"}
    lineage = interop.merge_folders([a, b], tmp_path / "asked", copy=["emb"])
    assert lineage["copied"]["embed"] == {"from": str(a), "why": "as asked"}
    with pytest.raises(WeightsError, match="copy_from is one of the folders"):
        interop.merge_folders([a, b], tmp_path / "no", copy_from="elsewhere")
    with pytest.raises(WeightsError, match="no tensor is left"):
        interop.merge_folders([a, b], tmp_path / "no", copy=["embed", "head"])


def test_the_record_holds_hashes_and_tells_what_was_changed(place, tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("config.json", "tokenizer.json", "optimizer.pt"):
        (tmp_path / "a" / name).write_text('{"torch_dtype": "float32"}')
    for file in (place / "m0").iterdir():
        os.link(file, tmp_path / "a" / file.name)
    inputs, out = [tmp_path / "a", place / "m1"], tmp_path / "out"
    lineage = interop.merge_folders(inputs, out, dtype="bfloat16", max_shard_size=2000)
    assert lineage == interop.read_lineage(out)
    assert [given["role"] for given in lineage["inputs"]] == ["member", "member"]
    assert lineage["files_left_out"] == ["optimizer.pt"]
    written = {p.name for p in out.iterdir()}
    assert written == {f["name"] for f in lineage["output"]["files"]} | {"lineage.json"}
    assert {"config.json", "tokenizer.json"} <= written
    # Or `from_pretrained` would make float32 of it again.
    config = json.loads((out / "config.json").read_text())
    assert config == {"torch_dtype": "bfloat16"}
    assert {v.state for v in interop.verify_lineage(out)} == {"same"}
    first = subprocess.run(
        ["sha256sum", out / "config.json"], capture_output=True, text=True, check=True
    )
    hashes = {f["name"]: f["sha256"] for f in lineage["output"]["files"]}
    assert first.stdout.split()[0] == hashes["config.json"]
    (out / "config.json").write_text("{}")
    (tmp_path / "a" / "model.safetensors.index.json").unlink()
    bad = {v.path: (v.role, v.state) for v in interop.verify_lineage(out)}
    assert bad[out / "config.json"] == ("output", "changed")
    index = tmp_path / "a" / "model.safetensors.index.json"
    assert bad[index] == ("member", "missing")
    with pytest.raises(WeightsError, match="holds no lineage.json"):
        interop.verify_lineage(place / "m0")


def test_an_input_that_changes_while_it_is_read_is_refused(place, tmp_path):
    with pytest.raises(WeightsError, match="z/model.safetensors was changed while"):
        interop.merge_folders(
            [place / "z", place / "m1"],
            tmp_path / "out",
            report=lambda done, total: os.utime(place / "z" / "model.safetensors"),
        )
    assert not list(tmp_path.iterdir())


def test_a_file_behind_two_folders_is_noted(place, tmp_path):
    """A shard of another snapshot, as in the cache of a hub: by a link or a copy."""
    for name in ("linked", "copied"):
        (tmp_path / name).mkdir()
    for file in (place / "m0").iterdir():
        (tmp_path / "linked" / file.name).symlink_to(file)
    file = "model.safetensors"
    (tmp_path / "copied" / file).write_bytes((place / "z" / file).read_bytes())
    notes = interop.merge_folders(
        [place / "m0", tmp_path / "linked"], tmp_path / "out"
    )["notes"]
    shards = sorted((place / "m0").glob("*.safetensors"))
    assert len(notes) == len(shards) > 1
    assert notes[0] == (
        f"{shards[0]} and {tmp_path / 'linked' / shards[0].name} are the same file,"
        " byte for byte: what it holds counts twice"
    )
    (note,) = interop.merge_folders(
        [place / "m0", tmp_path / "copied"],
        tmp_path / "moved",
        base=place / "z",
        method="task_arithmetic",
    )["notes"]
    assert note.endswith("what it holds adds nothing to the base")
    pair = [place / "m0", place / "m1"]
    assert interop.merge_folders(pair, tmp_path / "other")["notes"] == []


def test_inputs_are_found_from_the_record_whatever_the_working_directory(
    tmp_path, monkeypatch
):
    def states(folder):
        return [(v.role, v.state) for v in interop.verify_lineage(folder)]

    home = tmp_path / "home"
    (home / "elsewhere" / "a").mkdir(parents=True)
    monkeypatch.chdir(home)
    for i, name in enumerate(("a", "b")):
        interop.write_weights(name, {"x": np.full(3, i, np.float32)})
    # Another folder of the same relative name, which was not merged.
    interop.write_weights(home / "elsewhere" / "b", {"x": np.full(3, 7, np.float32)})
    lineage = interop.merge_folders(["a", home / "b"], "runs/out")
    assert [given["path"] for given in lineage["inputs"]] == ["a", str(home / "b")]
    assert [given["from_here"] for given in lineage["inputs"]] == ["../../a", "../../b"]
    same = [("output", "same"), ("member", "same"), ("member", "same")]
    monkeypatch.chdir(home / "elsewhere")
    assert states("../runs/out") == same
    # All moved together, and the record alone.
    monkeypatch.chdir(tmp_path)
    home.rename(tmp_path / "moved")
    assert states("moved/runs/out") == same
    (tmp_path / "moved").rename(home)
    (home / "runs" / "out").rename(home / "out")
    gone, found = states("home/out")[1:]
    assert gone == ("member", "missing") and found == ("member", "same")


def test_a_configuration_says_the_type_that_was_written(tmp_path):
    def write(name, dtypes, config):
        weights = {f"x{i}": np.ones((3, 4 - i), d) for i, d in enumerate(dtypes)}
        interop.write_weights(tmp_path / name, weights)
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        return tmp_path / name

    def said(folder):
        return json.loads((folder / "config.json").read_text())

    narrow, wide = ml_dtypes.bfloat16, np.float32
    parts = {"text_config": {"dtype": "bfloat16", "n": 1}, "dtype": "bfloat16"}
    base = write("z", [narrow, narrow], parts)
    pair = [write(n, [wide, wide], {"dtype": "float32"}) for n in ("a", "b")]
    interop.merge_folders(pair, tmp_path / "0", base=base, method="task_arithmetic")
    right = {"text_config": {"dtype": "float32", "n": 1}, "dtype": "float32"}
    assert said(tmp_path / "0") == right
    # A copied head of the base's type does not make the rest so.
    options = {"copy": ["x1"], "base": base, "method": "ties"}
    interop.merge_folders(pair, tmp_path / "1", **options)
    assert said(tmp_path / "1") == right
    # Weights of two types, of which the configuration names the wider: as it was.
    mixed = [write(n, [narrow, wide], {"torch_dtype": "float32"}) for n in ("c", "d")]
    interop.merge_folders(mixed, tmp_path / "2")
    assert said(tmp_path / "2") == {"torch_dtype": "float32"}
    # Nothing is said where nothing was said or changed.
    quiet = [write(n, [narrow], {"n": 1}) for n in ("e", "f")]
    interop.merge_folders(quiet, tmp_path / "3")
    assert said(tmp_path / "3") == {"n": 1}
    interop.merge_folders(quiet, tmp_path / "4", dtype="float16")
    assert said(tmp_path / "4") == {"n": 1, "dtype": "float16"}
    # In memory as well.
    stacked = interop.read_stacked(pair)
    interop.write_weights(tmp_path / "5", {"x0": stacked["x0"][0]}, like=base)
    assert said(tmp_path / "5") == right


def network(seed, variance):
    """Convolution and batch norm, by PyTorch's names."""
    rng = np.random.default_rng(seed)
    return {
        "conv.weight": np.asarray(rng.normal(size=(4, 3, 3, 3)), np.float32),
        "bn.weight": np.asarray(rng.normal(size=4), np.float32),
        "bn.running_mean": np.asarray(rng.normal(size=4), np.float32),
        "bn.running_var": np.full(4, variance, np.float32),
        "bn.num_batches_tracked": np.array(seed),
    }


NETWORKS = {"z": (9, 1.0), "a": (0, 0.3), "b": (1, 0.2), "c": (2, 0.25)}


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """Folders z, a, b, c, whose variances fell while they were fine-tuned."""
    monkeypatch.chdir(tmp_path)
    for name, (seed, variance) in NETWORKS.items():
        interop.write_weights(name, network(seed, variance))
    return tmp_path


OF_NETWORKS = {
    "average": {"weights": [1.0, 1.0, 2.0], "normalize": False},
    "breadcrumbs": {"density": 0.9, "lam": 0.5, "scope": "global"},
    "fisher": {"weights": [1.0, 1.0, 2.0]},
    "nearswap": {"t": 0.5},
    "slerp": {"t": 0.75, "scope": "global"},
    "task_arithmetic": {"lam": 0.5, "weights": [1.0, -1.0, 2.0]},
}


@pytest.mark.parametrize("method", OF_NETWORKS)
def test_batch_statistics_are_averaged_whatever_the_method(networks, method):
    own, knobs = METHODS[method], OF_NETWORKS[method]
    members = ["a", "b", "c"][: own.num_members]
    fisher = [f"f{name}" for name in members] if own.statistics else []
    for folder in fisher:  # of weights alone
        parts = {"conv.weight": (4, 3, 3, 3), "bn.weight": (4,)}
        ones = {name: np.ones(shape, np.float32) for name, shape in parts.items()}
        interop.write_weights(folder, ones)
    base = "z" if own.base else None
    lineage = interop.merge_folders(
        members, "out", base=base, method=method, knobs=knobs, fisher=fisher
    )
    assert lineage["statistics"] == "mean" and lineage["num_tensors"] == 4
    (note,) = lineage["notes"]
    assert note.startswith("batch statistics (bn.running_mean and 1 more) are the")
    assert "the members' mean" in note and "recompute_statistics" in note
    shares = {"slerp": [0.25, 0.75], "nearswap": [1, 0], "breadcrumbs": [1, 1, 1]}
    shares["task_arithmetic"] = [1, 0, 2]  # of a task that is forgotten: nothing
    shares = np.asarray(shares.get(method, [1, 1, 2]), float)
    models = {name: network(*own) for name, own in NETWORKS.items()}
    stacked = stack([models[name] for name in members])
    found = {n: x[0] for n, x in interop.read_stacked(["out"]).items()}
    for name in ("bn.running_mean", "bn.running_var"):
        expected = shares @ stacked[name] / shares.sum()
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-7)
    assert found["bn.num_batches_tracked"] == (9 if base else 0)
    # And so it is in memory, where names are the same.
    del stacked["bn.num_batches_tracked"], models["z"]["bn.num_batches_tracked"]
    arguments = [stacked] + [models["z"]] * bool(base)
    arguments += [jax.tree.map(np.ones_like, stacked)] if fisher else []
    expected = own.merge(*arguments, **knobs)
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=2e-6, atol=2e-6)


def test_batch_statistics_merged_as_weights_are_refused_below_zero(networks):
    members = ["a", "b", "c"]
    options = {"base": "z", "method": "task_arithmetic", "statistics": "method"}
    with pytest.raises(WeightsError, match="'bn.running_var' is below 0 once merged"):
        interop.merge_folders(members, "out", knobs={"lam": 0.5}, **options)
    assert not (networks / "out").exists()
    lineage = interop.merge_folders(members, "out", knobs={"lam": 0.3}, **options)
    assert "merged as weights are" in lineage["notes"][0]
    found = interop.read_stacked(["out"])["bn.running_var"][0]
    np.testing.assert_allclose(found, 1 + 0.3 * (-0.7 - 0.8 - 0.75), rtol=1e-5)
    with pytest.raises(ValueError, match="statistics is one of mean, method; got 'no'"):
        interop.merge_folders(members, "no", statistics="no")
    # A member that is broken already.
    interop.write_weights("bad", network(3, -5.0))
    with pytest.raises(WeightsError, match="'bn.running_var' is below 0 once merged"):
        interop.merge_folders(["a", "bad"], "no")


def test_batch_statistics_of_one_member_need_no_word(networks):
    def notes(**options):
        return interop.merge_folders(["a", "b"], "out", overwrite=True, **options)

    alone = {"knobs": {"weights": [0, 1]}}
    assert notes(**alone)["notes"] == []
    np.testing.assert_array_equal(
        interop.read_stacked(["out"])["bn.running_var"][0],
        network(1, 0.2)["bn.running_var"],
    )
    assert notes(method="slerp", knobs={"t": 0.0})["notes"] == []
    (note,) = notes(per_leaf={"conv": {"weights": [1, 0]}}, **alone)["notes"]
    assert "the members' mean" in note
    (note,) = notes(copy=["running"])["notes"]
    assert "(bn.running_mean and 1 more) are copied, not what" in note


def test_a_merged_network_of_pytorch_gives_numbers_and_can_be_put_right(networks):
    torch = pytest.importorskip("torch")
    knobs = {"drop": 0.5, "lam": 2.0}
    interop.merge_folders(["a", "b"], "out", base="z", method="dare", knobs=knobs)
    model = torch.nn.Sequential()
    model.add_module("conv", torch.nn.Conv2d(3, 4, 3, bias=False))
    model.add_module("bn", torch.nn.BatchNorm2d(4))
    with interop.open_weights("out") as opened:
        state = {name: torch.tensor(opened.read(name)) for name in opened.specs}
    model.load_state_dict(state, strict=False)
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(model.eval()(x)).all()
    torch.optim.swa_utils.update_bn([x], model)
    outputs = model.eval().conv(x)
    np.testing.assert_allclose(
        model.bn.running_mean.numpy(),
        outputs.mean((0, 2, 3)).detach().numpy(),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "method, knobs",
    [
        ("model_stock", {"scope": "output"}),
        # Sorting compiles slowly.
        pytest.param("della_linear", {"density": 0.5}, marks=pytest.mark.slow),
    ],
)
def test_units_of_an_embedding_are_those_in_memory_where_its_layout_is_said(
    tmp_path, method, knobs
):
    rng = np.random.default_rng(0)
    shapes = {"embed.weight": (6, 4), "dense.weight": (5, 4)}
    models = [
        {n: np.asarray(rng.normal(size=s), np.float32) for n, s in shapes.items()}
        for _ in range(4)
    ]
    folders = [tmp_path / name for name in ("z", "a", "b", "c")]
    for folder, model in zip(folders, models):
        interop.write_weights(folder, model)
    # As our modules hold them: kernels are [in, out], embeddings [token, dim].
    turned = [m | {"dense.weight": m["dense.weight"].T} for m in models]
    own = METHODS[method]
    keys = [jax.random.key(0)] if own.needs_key else []
    merge = jax.jit(lambda *a: own.merge(*a, **knobs))
    expected = merge(stack(turned[1:]), turned[0], *keys)["embed.weight"]

    def merged(out, **options):
        options |= {"base": folders[0], "method": method, "knobs": knobs}
        interop.merge_folders(folders[1:], tmp_path / out, **options)
        return interop.read_stacked([tmp_path / out])["embed.weight"][0]

    found = merged("same", per_leaf={"embed": {"layout": "flax"}})
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2e-6)
    # Without a word a token is a unit.
    assert np.abs(merged("torch") - expected).max() > 1e-2
    with pytest.raises(ValueError, match="for 'embed', layout is one of .*; got 'tf'"):
        merged("no", per_leaf={"embed": {"layout": "tf"}})


MEMORY = """
import sys, threading, time
from ensjax import interop
from ensjax.weight_space import METHODS

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

folder, method = sys.argv[1:]
knobs = {"sce": {"density": 0.3}}.get(method, {})

def merge(kind):
    interop.merge_folders(
        [f"{folder}/{kind}{i}" for i in range(12)], f"{folder}/{kind}-{method}",
        method=method, knobs=knobs,
        base=f"{folder}/{kind}z" if METHODS[method].base else None)

merge("small")  # compiles
before, peak, ends = anonymous(), 0, False

def watch():
    global peak
    while not ends:
        peak = max(peak, anonymous())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
merge("large")
ends = True
thread.join()
print(peak - before)
"""


@pytest.mark.parametrize(
    "method",
    [
        "ties",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("sce", "karcher_mean")),
    ],
)
def test_twelve_checkpoints_take_the_memory_of_three_tensors(tmp_path, method):
    shapes = {"small": (30, 40), "large": (1600, 4000)}
    for kind, shape in shapes.items():
        rng = np.random.default_rng(0)
        weights = {f"x{i}": rng.normal(size=shape).astype(np.float32) for i in (0, 1)}
        interop.write_weights(tmp_path / f"{kind}0", weights)
        for i in [*range(1, 12), "z"]:  # the same bytes, read as another's
            (tmp_path / f"{kind}{i}").mkdir()
            file = "model.safetensors"
            os.link(tmp_path / f"{kind}0" / file, tmp_path / f"{kind}{i}" / file)
    largest = 4 * 1600 * 4000
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path, method],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    # The stack of one tensor alone would be 12 of it.
    assert int(done.stdout) < 3 * largest, int(done.stdout) / largest
