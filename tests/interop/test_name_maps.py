"""Name maps: rules both ways, complete names, errors that name the tensor."""

import ml_dtypes
import numpy as np
import pytest

from ensjax.interop.name_maps import (
    Constant,
    NameMap,
    Rule,
    link_leaves,
    prefixed,
    read_leaves,
    write_tensors,
)
from ensjax.interop.transforms import (
    CONV,
    DENSE,
    SAME,
    Chain,
    Inverse,
    Join,
    Reshape,
    Transpose,
    joined_biases,
    joined_dense,
)

MAP = NameMap(
    rules=(
        Rule("embed.weight", "embed.kernel", CONV),
        Rule("word.weight", "word.embedding", tied="lm_head.weight"),
        Rule("cls", "token", Reshape((1, 1, -1), (-1,))),
        *prefixed(
            (
                Rule(
                    tuple(f"attn.{part}.weight" for part in "qkv"),
                    "qkv.kernel",
                    joined_dense(3),
                ),
                Rule(
                    tuple(f"attn.{part}.bias" for part in "qkv"),
                    "qkv.bias",
                    joined_biases(3),
                ),
                Rule("norm.weight", "norm.scale"),
            ),
            theirs="model.layers.{i}.",
            ours="blocks.{i}.",
        ),
    ),
    constants=(
        Constant("model.layers.{i}.num_seen", "blocks.{i}.norm.scale", np.int64(0)),
        Constant("position_ids"),
    ),
)
SHAPES = {
    "embed.kernel": (2, 3, 4, 6),
    "word.embedding": (5, 6),
    "token": (6,),
    **{f"blocks.{i}.qkv.kernel": (6, 18) for i in range(2)},
    **{f"blocks.{i}.qkv.bias": (18,) for i in range(2)},
    **{f"blocks.{i}.norm.scale": (6,) for i in range(2)},
}


def tensors(dtype=np.float32, **others):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(dtype)

    found = {
        "position_ids": np.arange(5),
        "embed.weight": draw(6, 4, 2, 3),
        "word.weight": draw(5, 6),
        "cls": draw(1, 1, 6),
    }
    for i in range(2):
        for part in "qkv":
            found[f"model.layers.{i}.attn.{part}.weight"] = draw(6, 6)
            found[f"model.layers.{i}.attn.{part}.bias"] = draw(6)
        found[f"model.layers.{i}.norm.weight"] = draw(6)
        found[f"model.layers.{i}.num_seen"] = np.int64(7)
    return {k: v for k, v in (found | others).items() if v is not None}


def assert_same(actual, expected):
    assert list(actual) == list(expected)
    for name, values in expected.items():
        assert actual[name].dtype == values.dtype, name
        assert actual[name].shape == values.shape, name
        assert actual[name].tobytes() == values.tobytes(), name


def test_leaves_are_the_tensors_moved_by_hand():
    theirs = tensors()
    ours = read_leaves(MAP, theirs, SHAPES)
    assert list(ours) == list(SHAPES)
    kernel = theirs["embed.weight"]
    assert ours["embed.kernel"][1, 2, 3, 5] == kernel[5, 3, 1, 2]
    names = [f"model.layers.1.attn.{part}.weight" for part in "qkv"]
    for place, name in enumerate(names):
        part = ours["blocks.1.qkv.kernel"][:, 6 * place : 6 * place + 6]
        np.testing.assert_array_equal(part, theirs[name].T)
    np.testing.assert_array_equal(ours["token"], theirs["cls"].ravel())


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_round_trip_is_exact_and_keeps_types(dtype):
    theirs = tensors(dtype)
    theirs["word.weight"][0, :2] = -0.0, np.nan
    theirs["lm_head.weight"] = theirs["word.weight"].copy()
    theirs["cls"] = theirs["cls"].astype(np.float32)  # types may differ by tensor
    ours = read_leaves(MAP, theirs, SHAPES)
    assert all(leaf.flags.c_contiguous for leaf in ours.values())
    written = write_tensors(MAP, ours, like=theirs)
    assert_same(written, theirs)
    assert all(tensor.flags.c_contiguous for tensor in written.values())


def test_without_an_original_constants_have_their_value_and_ties_one_name():
    theirs = tensors()
    written = write_tensors(MAP, read_leaves(MAP, theirs, SHAPES))
    assert set(theirs) - set(written) == {"position_ids"}
    assert written["model.layers.1.num_seen"] == 0
    assert written["model.layers.1.num_seen"].dtype == np.int64
    assert "lm_head.weight" not in written
    expected = {k: v for k, v in theirs.items() if k in written and "seen" not in k}
    assert_same({k: written[k] for k in expected}, expected)


def test_a_tied_name_stands_in_for_the_other():
    theirs = tensors()
    theirs["lm_head.weight"] = theirs.pop("word.weight")
    ours = read_leaves(MAP, theirs, SHAPES)
    np.testing.assert_array_equal(ours["word.embedding"], theirs["lm_head.weight"])
    assert_same(write_tensors(MAP, ours, like=theirs), theirs)
    assert "word.weight" in write_tensors(MAP, ours)


def test_tied_tensors_that_differ_are_refused():
    theirs = tensors()
    theirs["lm_head.weight"] = theirs["word.weight"] + 1
    with pytest.raises(ValueError, match="lm_head.weight must equal word.weight"):
        read_leaves(MAP, theirs, SHAPES)


@pytest.mark.parametrize(
    "others, match",
    [
        ({"cls": None}, r"missing: cls \(1, 1, 6\)"),
        (
            {"model.layers.1.attn.k.bias": None},
            r"missing: model.layers.1.attn.k.bias \(6,\)",
        ),
        ({"pooler.weight": np.zeros(3)}, "belong to nothing.*pooler.weight"),
        (
            {"model.layers.2.norm.weight": np.zeros(6)},
            "belong to nothing.*model.layers.2.norm.weight",
        ),
        (
            {"embed.weight": np.zeros((6, 2, 3, 4))},
            r"embed.weight has shape \(6, 2, 3, 4\); expected \(6, 4, 2, 3\)"
            r" for embed.kernel of shape \(2, 3, 4, 6\)",
        ),
        (
            {"model.layers.0.attn.v.weight": np.zeros((4, 6))},
            r"attn.v.weight has shape \(4, 6\); expected \(6, 6\)",
        ),
        (
            {"model.layers.0.attn.v.bias": np.zeros(6, np.float16)},
            "attn.v.bias is float16, but .*attn.q.bias.* float32",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(others, match):
    with pytest.raises(ValueError, match=match):
        read_leaves(MAP, tensors(**others), SHAPES)


def test_both_missing_and_unknown_names_are_told_at_once():
    renamed = tensors(cls=None, klass=np.zeros((1, 1, 6)))
    with pytest.raises(ValueError, match="missing: cls .*; 1 tensors .* klass"):
        read_leaves(MAP, renamed, SHAPES)


def test_an_original_of_other_names_is_refused():
    ours = read_leaves(MAP, tensors(), SHAPES)
    with pytest.raises(ValueError, match="belong to nothing in the model: other"):
        write_tensors(MAP, ours, like=tensors(other=np.zeros(1)))


def test_a_map_that_does_not_fit_the_model_is_refused():
    with pytest.raises(ValueError, match="no rule for 1 leaves of the model: extra"):
        link_leaves(MAP, SHAPES | {"extra": (2,)})
    twice = NameMap((*MAP.rules, Rule("other", "token")))
    with pytest.raises(ValueError, match="leaf token belongs to two rules"):
        link_leaves(twice, SHAPES)
    twice = NameMap((*MAP.rules, Rule("cls", "more")))
    with pytest.raises(ValueError, match="tensor cls belongs to two rules"):
        link_leaves(twice, SHAPES | {"more": (1, 1, 6)})
    with pytest.raises(ValueError, match="does not fit the rule"):
        link_leaves(MAP, SHAPES | {"blocks.0.qkv.bias": (17,)})
    with pytest.raises(ValueError, match="names 2 tensors, but its transform gives 1"):
        link_leaves(NameMap((Rule(("a", "b"), "token"),)), {"token": (2,)})
    halves = NameMap((Rule("both", ("a", "b"), Inverse(Join(0, 2))),))
    with pytest.raises(ValueError, match="no leaf b, which the map needs beside a"):
        link_leaves(halves, {"a": (2,)})


def test_one_tensor_of_theirs_may_be_several_leaves():
    name_map = NameMap(
        (Rule("fused.{i}", ("{i}.q", "{i}.kv"), Inverse(Join(0, (2, 4)))),)
    )
    fused = {"fused.3": np.arange(12.0).reshape(6, 2)}
    ours = read_leaves(name_map, fused, {"3.q": (2, 2), "3.kv": (4, 2)})
    np.testing.assert_array_equal(ours["3.q"], [[0, 1], [2, 3]])
    assert_same(write_tensors(name_map, ours), fused)
    with pytest.raises(ValueError, match=r"fused.3 has shape \(5, 2\)"):
        read_leaves(
            name_map, {"fused.3": fused["fused.3"][1:]}, {"3.q": (2, 2), "3.kv": (4, 2)}
        )


def test_a_number_is_the_same_wherever_it_stands():
    name_map = NameMap((Rule("a.{i}.b.{j}.{i}", "x.{i}.{j}"),))
    assert read_leaves(name_map, {"a.1.b.10.1": np.ones(2)}, {"x.1.10": (2,)})
    with pytest.raises(ValueError, match="belong to nothing"):
        read_leaves(name_map, {"a.1.b.10.2": np.ones(2)}, {"x.1.10": (2,)})


@pytest.mark.parametrize(
    "transform, shapes",
    [
        (SAME, [()]),
        (DENSE, [(2, 3)]),
        (CONV, [(2, 3, 4, 5)]),
        (Transpose((1, 2, 0)), [(2, 3, 4)]),
        (Reshape((4, -1), (2, 2, -1)), [(4, 6)]),
        (Join(1, (1, 2)), [(3, 1), (3, 2)]),
        (Join(-1, 3), [(3, 2)] * 3),
        (Inverse(Join(0, (1, 3))), [(4, 2)]),
        (Chain((DENSE, Reshape((2, 6), (2, 3, 2)), Join(1, 2))), [(6, 2)] * 2),
    ],
)
def test_a_transform_and_its_inverse(transform, shapes):
    rng = np.random.default_rng(1)
    theirs = [rng.normal(size=shape) for shape in shapes]
    back = transform.to_theirs(transform.to_ours(theirs))
    for actual, expected in zip(back, theirs, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_tensors_are_read_one_by_one_from_a_lazy_reader():
    class Reader:
        def __init__(self, arrays):
            self.arrays, self.asked = arrays, []

        def keys(self):
            return self.arrays.keys()

        def __contains__(self, name):
            return name in self.arrays

        def __getitem__(self, name):
            self.asked.append(name)
            return self.arrays[name]

    reader = Reader(tensors())
    read_leaves(MAP, reader, SHAPES)
    constants = [n for n in reader.arrays if "seen" in n or n == "position_ids"]
    assert sorted(reader.asked) == sorted(set(reader.arrays) - set(constants))
    broken = Reader(tensors(cls=None))
    with pytest.raises(ValueError, match="cls"):
        read_leaves(MAP, broken, SHAPES)
    assert broken.asked == []
