"""Weights of other frameworks: every type, shard and tie, and everything torn."""

import json
import pickle
import struct
import sys

import ml_dtypes
import numpy as np
import pytest

from ensjax import interop
from ensjax.interop import WeightsError
from ensjax.interop.small_files import small_files
from ensjax.interop.tensor_types import DTYPES, bytes_of

safetensors_numpy = pytest.importorskip("safetensors.numpy")


def every_type():
    """A tensor of random bits of every type, an empty one and a number."""
    rng = np.random.default_rng(0)
    weights = {"number": np.array(3.5, np.float32), "empty": np.zeros((0, 4))}
    for code, dtype in DTYPES.items():
        high = 2 if code == "BOOL" else 256
        bits = rng.integers(0, high, (3, 5 * dtype.itemsize), np.uint8)
        weights[f"layer.{code}"] = bits.view(dtype)
    return weights


def small(offset=0.0):
    return {
        "head.weight": np.arange(6, dtype=np.float32).reshape(2, 3) + offset,
        "head.bias": np.ones(2, ml_dtypes.bfloat16),
        "steps": np.arange(2),
    }


@pytest.mark.parametrize("max_shard_size", ["5GB", 100])
def test_every_type_comes_back_bit_for_bit(tmp_path, max_shard_size):
    weights = every_type()
    interop.write_weights(tmp_path / "a", weights, max_shard_size=max_shard_size)
    index = tmp_path / "a" / "model.safetensors.index.json"
    assert index.exists() == (max_shard_size == 100)
    with interop.open_weights(tmp_path / "a") as opened:
        assert set(opened.specs) == set(weights)
        assert opened.metadata == {"format": "pt"}
        for name, x in weights.items():
            found = opened.read(name)
            assert (found.dtype, found.shape) == (x.dtype, x.shape)
            part = opened.read_entries(name, min(1, x.size), x.size)
            assert part.tobytes() == x.reshape(-1)[1:].tobytes()
        with pytest.raises(ValueError, match="entries 0 to 99 of 'number'"):
            opened.read_entries("number", 0, 99)
    with pytest.raises(WeightsError, match="was closed"):
        opened.read("number")


def test_the_library_reads_what_is_written_and_the_other_way_round(tmp_path):
    weights = {k: v for k, v in every_type().items() if "F8" not in k}
    interop.write_weights(tmp_path / "a", weights)
    found = safetensors_numpy.load_file(tmp_path / "a" / "model.safetensors")
    for name, x in weights.items():
        assert found[name].tobytes() == x.tobytes()
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape)
    safetensors_numpy.save_file(weights, tmp_path / "b.safetensors", {"step": "7"})
    with interop.open_weights(tmp_path / "b.safetensors") as opened:
        assert opened.metadata == {"step": "7"}
        assert all(opened.read(n).tobytes() == x.tobytes() for n, x in weights.items())


def test_shards_and_their_index_are_those_of_the_format(tmp_path):
    weights = {f"layer.{i}": np.full(25, i, np.float32) for i in range(5)}
    interop.write_weights(tmp_path / "a", weights, max_shard_size=250)
    names = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "a" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 500}
    places = [names[0]] * 2 + [names[1]] * 2 + [names[2]]
    assert index["weight_map"] == dict(zip(weights, places))
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == sorted([*names, "model.safetensors.index.json"])


def test_wide_types_come_first_so_that_tensors_are_aligned(tmp_path):
    weights = {"a": np.ones(3, np.uint8), "b": np.ones(3, np.float64)}
    interop.write_weights(tmp_path / "a", weights)
    data = (tmp_path / "a" / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert header["b"]["data_offsets"] == [0, 24]
    assert header["a"]["data_offsets"] == [24, 27]


def test_a_stack_comes_back_bit_for_bit_with_its_small_files(tmp_path):
    for member in range(3):
        interop.write_weights(tmp_path / f"m{member}", small(member))
        (tmp_path / f"m{member}" / "config.json").write_text('{"a": 1}')
    folders = [tmp_path / f"m{member}" for member in range(3)]
    stacked = interop.read_stacked(folders)
    assert stacked["head.weight"].shape == (3, 2, 3)
    assert stacked["head.bias"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(stacked["head.weight"][2], small(2)["head.weight"])
    back = [tmp_path / f"back{member}" for member in range(3)]
    interop.write_members(back, stacked, like=folders)
    for old, new in zip(folders, back):
        for name in ("model.safetensors", "config.json"):
            assert (old / name).read_bytes() == (new / name).read_bytes()
    only = interop.read_stacked(folders, names=["steps"])
    assert list(only) == ["steps"] and only["steps"].dtype == np.int64


def test_a_tied_tensor_is_known_by_both_names(tmp_path):
    weights = {"embed": np.ones((4, 2), np.float32), "bias": np.ones(4, np.float32)}
    interop.write_weights(tmp_path / "a", weights, ties={"lm_head": "embed"})
    with interop.open_weights(tmp_path / "a") as opened:
        assert opened.ties == {"lm_head": "embed"}
        assert list(opened.specs) == ["embed", "bias"]
        np.testing.assert_array_equal(opened.read("lm_head"), weights["embed"])
    interop.write_weights(tmp_path / "b", weights, like=tmp_path / "a")
    with interop.open_weights(tmp_path / "b") as opened:
        assert opened.ties == {"lm_head": "embed"}


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def edit_header(path, edit):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def edit_index(path, edit):
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))


WHOLE = {
    "cut in the data": (lambda f: cut(f, 150), "damaged or truncated"),
    "cut in the header": (lambda f: cut(f, 40), "damaged or truncated"),
    "cut in the length": (lambda f: cut(f, 4), "damaged or truncated"),
    "no header": (lambda f: f.write_bytes(b"x" * 300), "damaged or truncated"),
    "overlap": (
        lambda f: edit_header(f, lambda h: h["head.bias"].update(data_offsets=[0, 4])),
        "damaged or truncated",
    ),
    "packed type": (
        lambda f: f.write_bytes(packed()),
        "tensor 'x' of .* has type F4, which is packed",
    ),
}


def packed():
    entry = {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}
    header = json.dumps({"x": entry}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0"


@pytest.mark.parametrize("case", WHOLE)
def test_a_damaged_file_is_named(tmp_path, case):
    harm, message = WHOLE[case]
    interop.write_weights(tmp_path / "a", small())
    harm(tmp_path / "a" / "model.safetensors")
    with pytest.raises(WeightsError, match=message) as error:
        interop.open_weights(tmp_path / "a")
    assert "model.safetensors" in str(error.value)


def test_a_file_that_is_cut_after_it_was_opened_is_named(tmp_path):
    interop.write_weights(tmp_path / "a", small())
    opened = interop.open_weights(tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    cut(file, file.stat().st_size - 3)
    last = list(opened.specs)[-1]
    with pytest.raises(WeightsError, match=f"ends within tensor '{last}'"):
        opened.read(last)


INDEX = {
    "names what is not there": (
        lambda w: w.update(gone=next(iter(w.values()))),
        "says that model-0000.-of-00003.safetensors holds 'gone', but it does not",
    ),
    "lacks a name": (
        lambda w: w.update({"head.bias": w.pop("steps")}),
        "holds 'steps', which .* does not name",
    ),
    "leaves its folder": (lambda w: w.update(steps="../x"), "outside its folder"),
    "lacks a shard": (
        lambda w: w.update(steps="model-00009.safetensors"),
        "lacks model-00009.safetensors, which .* names for 'steps'",
    ),
}


@pytest.mark.parametrize("case", INDEX)
def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path, case):
    edit, message = INDEX[case]
    interop.write_weights(tmp_path / "a", small(), max_shard_size=16)
    edit_index(tmp_path / "a" / "model.safetensors.index.json", edit)
    with pytest.raises(WeightsError, match=message):
        interop.open_weights(tmp_path / "a")


def test_a_folder_without_weights_or_with_several_says_so(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(WeightsError, match="holds no weights; looked for"):
        interop.open_weights(empty)
    with pytest.raises(WeightsError, match="no folder or file"):
        interop.open_weights(tmp_path / "nowhere")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(WeightsError, match="must be a folder, or a file"):
        interop.open_weights(tmp_path / "x.txt")
    for name in "ab":
        safetensors_numpy.save_file(small(), empty / f"{name}.safetensors")
    with pytest.raises(WeightsError, match=r"several .*a.safetensors, b.safetensors"):
        interop.open_weights(empty)
    (empty / "adapter_config.json").write_text("{}")
    with pytest.raises(WeightsError, match="LoRA adapter"):
        interop.open_weights(empty)
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(WeightsError, match="no index of weights"):
        interop.open_weights(tmp_path / "index")


def test_checkpoints_that_differ_are_told_by_tensor_and_folder(tmp_path):
    interop.write_weights(tmp_path / "a", small())
    changes = {
        "lacks": ({"steps": None}, "tensor 'steps' is missing in .*lacks"),
        "more": ({"more": np.ones(1)}, "tensor 'more' is in .*more, but not in .*a"),
        "shape": (
            {"head.bias": np.ones(3, ml_dtypes.bfloat16)},
            r"'head.bias' is bfloat16\[3\] in .*shape, but bfloat16\[2\] in .*a",
        ),
        "type": (
            {"head.bias": np.ones(2, np.float16)},
            r"'head.bias' is float16\[2\] in .*type, but bfloat16\[2\] in .*a",
        ),
    }
    for name, (change, message) in changes.items():
        weights = {k: v for k, v in (small() | change).items() if v is not None}
        interop.write_weights(tmp_path / name, weights)
        with pytest.raises(WeightsError, match=message):
            interop.read_stacked([tmp_path / "a", tmp_path / name])
    with pytest.raises(WeightsError, match="at least one folder"):
        interop.read_stacked([])


def test_nothing_is_overwritten_and_wrong_types_are_refused(tmp_path):
    interop.write_weights(tmp_path / "a", small())
    with pytest.raises(WeightsError, match="is there already"):
        interop.write_weights(tmp_path / "a", small())
    with pytest.raises(WeightsError, match="'x' has type <U1, which safetensors"):
        interop.write_weights(tmp_path / "b", {"x": np.array(["a"])})
    with pytest.raises(WeightsError, match="there are 2 folders"):
        interop.write_members([tmp_path / "b", tmp_path / "c"], small() | {"y": [1]})
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_small_files_are_neither_weights_nor_of_a_run(tmp_path):
    kept = ["LICENSE", "config.json", "1_Pooling/config.json", "tokenizer.model"]
    left = ["README.md", "model.onnx", "optimizer.pt", "trainer_state.json"]
    left += ["pytorch_model.bin.index.json", "training_args.bin", "rng_state_0.pth"]
    others = ["checkpoint-5/model.safetensors", "checkpoint-5/config.json", ".git/HEAD"]
    for name in kept + left + others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    files = small_files(tmp_path)
    assert files.kept == sorted(kept)
    assert files.left == sorted([*left, "checkpoint-5/"])


@pytest.mark.parametrize(
    "text, number", [("5GB", 5 * 10**9), ("1.5MiB", 3 * 2**19), (" 20 ", 20), (7, 7)]
)
def test_sizes_are_read(text, number):
    assert bytes_of(text) == number


@pytest.mark.parametrize("text", ["", "5XB", "-1", "0", "nanGB", "infMB"])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="a size is such as 5GB"):
        bytes_of(text)


class TestPyTorchFiles:
    """`.bin` files, by PyTorch's safe loader alone."""

    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch")

    def test_tensors_ties_and_views_are_read(self, torch, tmp_path):
        embed = torch.arange(12.0).reshape(4, 3).to(torch.bfloat16)
        weights = {
            "embed": embed,
            "lm_head": embed,
            "turned": torch.arange(6.0).reshape(2, 3).T,
            "part": torch.arange(10)[2:5],
            "float8": torch.arange(4.0).to(torch.float8_e4m3fn),
            "number": torch.tensor(2.5),
            "flag": torch.tensor([True, False]),
            "param": torch.nn.Parameter(torch.ones(2)),
        }
        torch.save(weights, tmp_path / "pytorch_model.bin")
        with interop.open_weights(tmp_path) as opened:
            assert opened.ties == {"lm_head": "embed"}
            for name, x in weights.items():
                found = opened.read(name)
                assert found.shape == tuple(x.shape)
                np.testing.assert_array_equal(
                    found.astype(np.float32), x.detach().to(torch.float32).numpy()
                )
            np.testing.assert_array_equal(
                opened.read_entries("turned", 1, 4), [3, 1, 4]
            )
            assert opened.read("float8").dtype == ml_dtypes.float8_e4m3fn

    def test_safetensors_are_preferred_and_shards_are_found(self, torch, tmp_path):
        names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
        for i, name in enumerate(names):
            torch.save({f"x{i}": torch.full((2,), float(i))}, tmp_path / name)
        index = {"metadata": {}, "weight_map": dict(zip(["x0", "x1"], names))}
        place = tmp_path / "pytorch_model.bin.index.json"
        place.write_text(json.dumps(index))
        with interop.open_weights(tmp_path) as opened:
            assert opened.read("x1").tolist() == [1.0, 1.0]
        safetensors_numpy.save_file({"y": np.ones(1)}, tmp_path / "model.safetensors")
        with interop.open_weights(tmp_path) as opened:
            assert list(opened.specs) == ["y"]

    def test_the_old_format_is_read_and_noted(self, torch, tmp_path):
        path = tmp_path / "old.pt"
        torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
        with interop.open_weights(path) as opened:
            assert opened.read("x").tolist() == [1.0, 1.0]
            assert "held in memory" in opened.notes[0]

    def test_what_could_run_code_is_refused_and_does_not_run(self, torch, tmp_path):
        marker = tmp_path / "ran"

        class Attack:
            def __reduce__(self):
                return (open, (str(marker), "w"))

        torch.save({"x": Attack()}, tmp_path / "model.pt")
        with pytest.raises(WeightsError, match="holds more than tensors"):
            interop.open_weights(tmp_path / "model.pt")
        (tmp_path / "plain.bin").write_bytes(pickle.dumps({"x": Attack()}))
        with pytest.raises(WeightsError):
            interop.open_weights(tmp_path / "plain.bin")
        assert not marker.exists()

    def test_what_is_no_dict_of_tensors_is_named(self, torch, tmp_path):
        torch.save({"model": {"x": torch.ones(1)}}, tmp_path / "a.pt")
        with pytest.raises(WeightsError, match="entry 'model' is dict. Save the"):
            interop.open_weights(tmp_path / "a.pt")
        torch.save(torch.ones(1), tmp_path / "b.pt")
        with pytest.raises(WeightsError, match="must hold a dict of tensors"):
            interop.open_weights(tmp_path / "b.pt")
        torch.save({"x": torch.ones(2).to_sparse()}, tmp_path / "c.pt")
        with pytest.raises(WeightsError, match="'x' of .* is sparse"):
            interop.open_weights(tmp_path / "c.pt")
        torch.save({"x": torch.ones(2000)}, tmp_path / "d.pt")
        cut(tmp_path / "d.pt", 4000)
        with pytest.raises(WeightsError, match="damaged, or no file of torch.save"):
            interop.open_weights(tmp_path / "d.pt")

    def test_without_pytorch_one_line_names_the_extra(self, monkeypatch, tmp_path):
        (tmp_path / "pytorch_model.bin").write_bytes(b"")
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(WeightsError, match=r"needs PyTorch: pip install 'ensjax"):
            interop.open_weights(tmp_path)
