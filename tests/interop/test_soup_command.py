"""`ensjax soup` as a user meets it: flags, records, and whatever can go wrong."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ensjax import cli, interop
from ensjax.experiment.soup_options import METHOD_NAMES
from ensjax.interop.output_folders import output_folder
from ensjax.interop.tensor_types import WeightsError, bytes_text
from ensjax.weight_space import METHODS

pytest.importorskip("safetensors")


def weights(value, **more):
    return {
        "body.weight": np.full((4, 3), value, np.float32),
        "head.weight": np.full((2, 3), value, np.float32),
    } | more


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with z (0), a (1) and b (3)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name, value in (("z", 0.0), ("a", 1.0), ("b", 3.0)):
        interop.write_weights(name, weights(value))
        (tmp_path / name / "config.json").write_text(json.dumps({"name": name}))
    return tmp_path


def soup(text):
    return cli.main(["soup", *text.split()])


def values(folder):
    """The first entries of body and head."""
    found = interop.read_stacked([folder])
    return found["body.weight"].flat[0], found["head.weight"].flat[0]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


RUNS = {
    "a b": (2.0, 2.0),
    "a b --weights 1,3": (2.5, 2.5),
    "a b --weights 1,3 --pattern head=1,0": (2.5, 1.0),
    "a b --method uniform --weights 1,1 --normalize no": (4.0, 4.0),
    "a b --alpha 0.25": (1.5, 1.5),
    "a b --alpha 0.25 --pattern head=1": (1.5, 3.0),
    "a b --base z --alpha 0.5": (1.0, 1.0),
    "a b --base z --method task_arithmetic --lam 0.5": (2.0, 2.0),
    "a b --base z --method task-arithmetic --pattern ^body:lam=1": (4.0, 1.2),
    "a b --base z --method task_arithmetic --lam 1 --weights -1,2": (5.0, 5.0),
    "a b --base z --method task_arithmetic --lam -1e-1": (-0.4, -0.4),
    "a b --base z --method ties --density 1": (2.0, 2.0),
    "a b --method slerp --t 0.25": (1.5, 1.5),
    "a b --method slerp --t 0.25 --parallel 1": (1.5, 1.5),
    "a b --method nearswap --t 0.5": (1.5, 1.5),
    "a b --base z --method model_stock": (2.0, 2.0),
    "a b --copy head --copy_from b": (2.0, 3.0),
}


@pytest.mark.parametrize("text", RUNS)
def test_flags_say_what_is_merged(here, capsys, text):
    assert soup(f"{text} -o out") == 0
    np.testing.assert_allclose(values("out"), RUNS[text], rtol=1e-6)
    assert names(here) == ["a", "b", "out", "z"]
    source = "z" if "--base" in text else "b" if "--copy_from b" in text else "a"
    assert json.loads((here / "out" / "config.json").read_text()) == {"name": source}
    assert capsys.readouterr().out.startswith("out: ")


def test_a_path_of_alphas_is_a_folder_for_each(here):
    assert soup("z b --alpha 0,0.5,1 -o path") == 0
    found = [values(f"path/alpha-{alpha}")[0] for alpha in ("0", "0.5", "1")]
    assert found == [0.0, 1.5, 3.0]


def test_what_is_not_merged_is_told(here, capsys):
    interop.write_weights("c", weights(5.0, steps=np.array(5), more=np.ones(2)))
    interop.write_weights("d", weights(7.0, steps=np.array(7)))
    (here / "d" / "config.json").write_text('{"num_attention_heads": 4}')
    (here / "c" / "config.json").write_text('{"num_attention_heads": 2}')
    assert soup("c d -o no") == 2
    error = capsys.readouterr().err
    assert error.startswith("ensjax: tensor 'more' is missing in d; c has it.")
    assert error.count("\n") == 1
    assert soup("c d --copy-from d -o out") == 0
    told = capsys.readouterr().out
    assert "copied from d (int64 is not averaged): steps" in told
    assert "left out (is missing in d; c has it, and d lacks it): more" in told
    assert "note: config.json of d and of c differ in num_attention_heads" in told
    config = json.loads((here / "out" / "config.json").read_text())
    assert config == {"num_attention_heads": 4}  # as what is copied
    lineage = json.loads((here / "out" / "lineage.json").read_text())
    assert lineage["inputs"][1]["path"] == "d"
    assert lineage["versions"]["ensjax"]


def test_a_merge_is_verified(here, capsys):
    assert soup("a b -o out") == 0
    assert soup("--verify out") == 0
    assert "member: 2 of 2 files are the same" in capsys.readouterr().out
    (here / "out" / "model.safetensors").write_bytes(b"x")
    assert soup("--verify out") == 1
    assert "changed: out/model.safetensors (output)" in capsys.readouterr().out
    assert soup("a b -o other") == 0
    (here / "b").rename(here / "moved")
    capsys.readouterr()
    assert soup("--verify other") == 0
    told = capsys.readouterr().out
    assert "member: 1 of 2 files are the same, 1 not checked" in told
    assert f"not checked, not found: {here}/b/model.safetensors (member)" in told
    assert soup("--verify a") == 2
    assert soup("a --verify out") == 2


MISTAKES = {
    "-o out": "needs the folders",
    "a b": "needs -o DIR",
    "a b -o out --method tie": "method is one of average, ",
    "a b -o out --method ties": "ties needs a base",
    "a b -o out --base z": "average takes no base",
    "a b z -o out --method slerp": "slerp merges 2 folders; got 3",
    "a b -o out --method slerp --lam 3": "lam is no knob of slerp; it has t, scope",
    "a b -o out --method nearswap": "nearswap needs t, which has no usual value",
    "a b -o out --weights 1,2,3": "weights must be [member] with 2 members",
    "a b -o out --weights 1,x": "--weights takes numbers with commas",
    "a b -o out --base z --method ties --density 2": "density must lie from 0 to 1",
    "a b -o out --base z --method ties --scope all": "scope must be one of leaf",
    "a b -o out --pattern head": "--pattern takes RE=X",
    "a b -o out --pattern head=0.5": "--pattern 'head=0.5' sets weights, one for each",
    "a b -o out --pattern head=-1,1": "for 'head', weights must be finite and at least",
    "a b -o out --pattern head:t=1": "for 'head', t is no knob of average",
    "a b -o out --weights -1,2": "weights must be finite and at least 0",
    "a b -o out --pattern nose=1,2": "'nose' is found in the name of no leaf",
    "a b -o out --pattern (=1,2": "'(' is no regular expression",
    "a b -o out --base z --method ties --pattern head:density=1": "cannot differ for",
    "a b -o out --alpha 2": "--alpha lies from 0 to 1",
    "a b z -o out --alpha 0.5": "--alpha mixes two folders, or --base and others",
    "a b -o out --alpha 0.5 --method slerp": "--alpha is a method of its own",
    "a b -o out --method fisher": "fisher takes 2 folders of Fisher information",
    "a b -o out --dtype float": "dtype is one of ",
    "a b -o out --layout tf": "layout is one of torch, flax",
    "a b -o out --max_shard_size 5XB": "a size is such as 5GB",
    "a a -o out": "a is named twice",
    "a ./a -o out": "is named twice (also as a)",
    "a empty -o out": "empty holds no weights",
    "a nowhere -o out": "no folder or file nowhere",
    "a b -o z": "z is there already",
    "a b -o z --overwrite": "z is not overwritten: it holds no lineage.json",
    "a b -o a/out": "the output a/out and the input a are in one another",
    "a b -o out --copy_from base": "--copy_from base needs --base",
    "a nan -o out": "'head.weight' of nan holds NaN or infinity",
    "a quantized -o out": "quantized is quantized",
    "a big -o out --dtype float16": "'body.weight' is beyond float16 once merged",
    "a b -o out --weights nan,1": "--weights takes finite numbers",
    "a b -o out --base z --method ties --lam inf": "--lam takes finite numbers",
    "a b -o out --pattern head=1e999,1": "--weights takes finite numbers",
    "a b -o out --method karcher --num_iterations inf": "--num_iterations takes finite",
    "a b -o out --method slerp --t 1.5": "t must lie from 0 to 1; got 1.5",
    "a b -o out --method nuslerp --t -1": "t must lie from 0 to 1; got -1",
    "a b -o out --method slerp --parallel 1.5": "parallel must lie from 0 to 1",
    "a b -o out --method slerp --parallel 0,1": "parallel must be one number",
    "a b -o out --method karcher --tolerance -1": "tolerance must be at least 0",
    "a b -o out --method fisher --fisher a --fisher b --floor -1": "floor must be at",
    "a b -o out --base z --method della --density .5 --epsilon 1": "epsilon must lie",
    "a b -o out --base z --method ties --lam 1e39": "lam must fit float32",
    "a b z -o out --weights 1e38,1e38,1e38": "weights must be 0 or of a size from",
    "a b -o out --base z --method task_arithmetic --weights 1,1e-40": "weights must be",
    "wide b -o out --weights 9,9 --normalize no": "'body.weight' is not finite once",
    "a half -o out": "'body.weight' is float16 in half, but float32 in a",
    "a --method model_stock --base z -o out": "at least two members",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(here, capsys, text):
    if "empty" in text:
        (here / "empty").mkdir()
    if "nan" in text:
        bad = np.array([[np.nan, 1.0, 1.0]] * 2, np.float32)
        interop.write_weights("nan", weights(1.0) | {"head.weight": bad})
    if "quantized" in text:
        interop.write_weights("quantized", weights(1.0))
        (here / "quantized" / "config.json").write_text(
            '{"quantization_config": {"a": 1}}'
        )
    if "big" in text:
        interop.write_weights("big", weights(1e6))
    if "wide" in text:
        interop.write_weights("wide", weights(1e38))
    if "half" in text:
        half = {name: x.astype(np.float16) for name, x in weights(1.0).items()}
        interop.write_weights("half", half)
    before = names(here)
    assert soup(text) == 2
    error = capsys.readouterr().err
    assert error.startswith("ensjax: ") and error.count("\n") == 1
    assert MISTAKES[text] in error
    assert names(here) == before


def test_one_folder_alone_and_values_that_are_not_finite_can_be_asked_for(here):
    assert soup("a -o copy") == 0
    assert values("copy") == (1.0, 1.0)
    bad = np.array([[np.inf, 1.0, 1.0]] * 2, np.float32)
    interop.write_weights("inf", weights(1.0) | {"head.weight": bad})
    assert soup("a inf -o out --allow-non-finite") == 0
    assert values("out") == (1.0, np.inf)


def test_results_that_are_not_finite_can_be_asked_for(here):
    interop.write_weights("wide", weights(1e38))
    text = "wide b -o out --weights 9,9 --normalize no --allow_non_finite"
    assert soup(text) == 0
    assert values("out") == (np.inf, np.inf)


LEFT_OUT = {
    "--weights 1,0": (1.0, 1.0),
    "--pattern body=1,0 --pattern head=1,0": (1.0, 1.0),
    "--method slerp --t 0": (1.0, 1.0),
    "--base z --method task_arithmetic --lam 1 --weights 2,0": (2.0, 2.0),
    "--base z --method della --density 1 --weights 1,0": (1.0, 1.0),
    "--method multislerp --weights 1,0": (1.0, 1.0),
    "--method fisher --fisher a --fisher nan --weights 1,0": (1.0, 1.0),
    "--alpha 0": (1.0, 1.0),
}


@pytest.mark.parametrize(
    "text",
    [pytest.param(t, marks=pytest.mark.slow) if "della" in t else t for t in LEFT_OUT],
)
def test_a_member_of_weight_0_is_left_out_also_if_it_is_not_finite(here, text):
    interop.write_weights("nan", weights(np.nan))
    # Without a word: the NaN of other members would still be refused.
    assert soup(f"a nan -o out {text}") == 0
    np.testing.assert_allclose(values("out"), LEFT_OUT[text], rtol=1e-6)


def test_a_member_that_is_left_out_of_one_tensor_is_checked_in_the_others(here, capsys):
    interop.write_weights("nan", weights(np.nan))
    assert soup("a nan -o out --pattern head=1,0") == 2
    assert "'body.weight' of nan holds NaN" in capsys.readouterr().err
    assert soup("a nan -o out --pattern head=1,0 --allow_non_finite") == 0
    np.testing.assert_array_equal(values("out"), (np.nan, 1.0))
    assert soup("nan a --base nan --method nuslerp --t 1 -o no") == 2  # of the base


def test_batch_statistics_are_told_and_merged_as_asked(here, capsys):
    for name, own in (("z1", 1.0), ("a1", 0.3), ("b1", 0.2)):
        statistics = {"bn.running_var": np.full(4, own, np.float32)}
        interop.write_weights(name, weights(own) | statistics)
    text = "a1 b1 --base z1 --method task_arithmetic --lam 0.75"
    assert soup(f"{text} -o out") == 0
    told = capsys.readouterr().out
    assert "  note: batch statistics (bn.running_var) are the members' mean" in told
    found = interop.read_stacked(["out"])["bn.running_var"]
    np.testing.assert_allclose(found, 0.25, rtol=1e-6)
    assert soup(f"{text} -o no --statistics method") == 2
    assert "'bn.running_var' is below 0 once merged" in capsys.readouterr().err
    assert soup(f"{text} -o no --statistics median") == 2
    assert "statistics is one of mean, method" in capsys.readouterr().err


def test_a_layout_is_said_for_a_tensor(here, capsys):
    text = "a b --base z --method della --density 0.5 --pattern"
    assert soup(f"{text} body:layout=flax -o out") == 0
    lineage = interop.read_lineage("out")
    assert lineage["per_leaf"] == {"body": {"layout": "flax"}}
    assert soup(f"{text} body:layout=tf -o no") == 2
    assert (
        "for 'body', layout is one of torch, flax; got 'tf'" in capsys.readouterr().err
    )


def test_sizes_are_told_in_units_that_can_be_read(here, capsys, monkeypatch):
    known = {0: "0 B", 584: "584 B", 999: "999 B", 1000: "1 kB", 12345: "12.3 kB"}
    known |= {999_600: "1 MB", 5 * 10**9: "5 GB", 3 * 10**15: "3e+03 TB"}
    assert {count: bytes_text(count) for count in known} == known
    monkeypatch.setattr("ensjax.experiment.read_progress._SECONDS_BETWEEN_LINES", 0.0)
    assert soup("a b -o out") == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("out: 48 B of 144 B read | ")
    assert next(t for t in told if "files, " in t).endswith(" B")


METHODS_OF_NOTHING = {
    "average": "",
    "ties": "--base z0",
    "breadcrumbs": "--base z0 --density 0.5 --scope leaf",
    "della": "--base z0 --density 0.5",
    "sce": "--base z0",
    "slerp": "",
    "nuslerp": "--scope output",
}


@pytest.mark.parametrize("method", METHODS_OF_NOTHING)
def test_a_tensor_without_entries_is_kept(here, method):
    for name, value in (("z0", 0.0), ("a0", 1.0), ("b0", 1.0)):
        none = {"empty.weight": np.zeros((0, 3), np.float32)}
        interop.write_weights(name, none | weights(value, none=np.zeros((2, 0, 3))))
    text = f"a0 b0 -o out --method {method} {METHODS_OF_NOTHING[method]}"
    assert soup(text) == 0
    found = interop.read_stacked(["out"])
    assert found["empty.weight"].shape == (1, 0, 3)
    assert found["none"].shape == (1, 2, 0, 3)
    assert np.isfinite(found["body.weight"]).all()


def words(name, config, head=None):
    """A language model with an embedding of 4s and, if asked for, a head."""
    own = {"emb.weight": np.full((5, 2), 4.0, np.float32)}
    if head is not None:
        own["lm_head.weight"] = np.full((5, 2), head, np.float32)
    interop.write_weights(name, own)
    with open(f"{name}/config.json", "w") as file:
        json.dump(config, file)


def test_tied_words_and_words_apart_are_not_mixed(here, capsys):
    tied, apart = ({"tie_word_embeddings": is_tied} for is_tied in (True, False))
    words("tied", tied, 4.0)
    words("less", tied)
    words("apart", apart, 8.0)
    words("default", {"model_type": "llama"}, 8.0)
    refused = {
        "tied apart": "tie_word_embeddings is true in tied, but false in apart;",
        "apart tied": "tie_word_embeddings is true in tied, but false in apart;",
        "tied default": "true in tied, but false in default;",
        "tied apart --copy_from tied": "'lm_head.weight' would not be read; leave it",
        "tied less --copy_from tied": "'lm_head.weight' would not be read; leave it",
    }
    for text, message in refused.items():
        assert soup(f"{text} -o out") == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert not (here / "out").exists()
    merged = {
        "tied apart --copy_from apart": (apart, 6.0),
        "less apart --copy_from apart": (apart, 8.0),
        "less apart --copy_from less": (tied, None),
        "tied apart --copy_from tied --skip lm_head": (tied, None),
        "apart default": (apart, 8.0),
    }
    for text, (config, head) in merged.items():
        assert soup(f"{text} -o out --overwrite") == 0, text
        assert json.loads((here / "out" / "config.json").read_text()) == config
        found = interop.read_stacked(["out"])
        assert found.get("lm_head.weight", np.array([None])).flat[0] == head


def test_an_earlier_output_is_replaced_when_asked(here):
    assert soup("a b -o out") == 0
    assert soup("a b -o out --alpha 1") == 2
    assert values("out") == (2.0, 2.0)
    assert soup("a b -o out --alpha 1 --overwrite") == 0
    assert values("out") == (3.0, 3.0)
    assert names(here) == ["a", "b", "out", "z"]


def test_what_training_leaves_is_neither_merged_nor_kept(here):
    for name in ("optimizer.pt", "training_args.bin", "tokenizer.json"):
        (here / "a" / name).write_text("{}")
    assert soup("a b -o out") == 0
    expected = ["config.json", "lineage.json", "model.safetensors", "tokenizer.json"]
    assert names(here / "out") == expected


def test_two_processes_cannot_write_one_folder(here):
    with output_folder("out", overwrite=False) as partial:
        assert partial.is_dir() and not (here / "out").exists()
        second = output_folder("out", overwrite=False)
        with pytest.raises(WeightsError, match="being written by another process"):
            second.__enter__()
    assert names(here) == ["a", "b", "out", "z"]


def test_files_of_ensjax_export_are_merged(here):
    from safetensors.numpy import save_file

    for i in (0, 1):
        tensors = {
            "params.kernel": np.full((3, 4), i, np.float32),
            "rest.n": np.ones(1),
        }
        metadata = {"format": "ensjax", "step": "9"}
        save_file(tensors, f"member-{i}.safetensors", metadata)
    assert soup("member-0.safetensors member-1.safetensors -o out") == 0
    assert interop.read_lineage("out")["layout"] == "flax"
    found = interop.read_stacked(["out"])
    assert (found["params.kernel"] == 0.5).all()
    assert soup("--verify out") == 0


def test_fisher_information_weighs_entries(here):
    for name, value in (("fa", 1.0), ("fb", 3.0)):
        interop.write_weights(name, weights(value))
    assert soup("a b --method fisher --fisher fa --fisher fb -o out") == 0
    np.testing.assert_allclose(values("out"), (1 / 4 + 9 / 4,) * 2, rtol=1e-6)
    roles = [given["role"] for given in interop.read_lineage("out")["inputs"]]
    assert roles == ["member", "member", "fisher", "fisher"]
    interop.write_weights("fc", weights(-1.0))
    assert soup("a b --method fisher --fisher fa --fisher fc -o no") == 2


def test_the_help_names_every_method():
    assert tuple(m for m in sorted(METHODS) if m != "regmean") == METHOD_NAMES


def run(*arguments, limit="unlimited"):
    """The command in a process of its own, which writes files of so many KiB."""
    command = [sys.executable, "-m", "ensjax.cli", "soup", *arguments]
    shell = ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "bash"]
    return subprocess.Popen(
        shell + command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing(here):
    interop.write_weights("large", weights(1.0, x=np.ones((300, 1000), np.float32)))
    interop.write_weights("other", weights(1.0, x=np.ones((300, 1000), np.float32)))
    before = names(here)
    done = run("large", "other", "-o", "out", limit="500")
    out, error = done.communicate(timeout=120)
    assert done.returncode == 74, error
    assert (out, error) == ("", "ensjax: no space left for out; it was not written.\n")
    assert names(here) == before


SIGINT, SIGTERM = (
    pytest.param(number, marks=pytest.mark.slow)
    for number in (signal.SIGINT, signal.SIGTERM)
)


@pytest.mark.parametrize("how", [signal.SIGKILL, SIGTERM, SIGINT])
def test_a_process_that_is_stopped_leaves_nothing_that_looks_whole(here, how):
    interop.write_weights("large", weights(2.0, x=np.ones((2000, 3000), np.float32)))
    interop.write_weights("other", weights(4.0, x=np.ones((2000, 3000), np.float32)))
    process = run("large", "other", "-o", "out", "--max_shard_size", "1MB")
    partial = here / ".out.partial"
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if partial.exists() and any(partial.iterdir()):
            break
        time.sleep(0.001)
    process.send_signal(how)
    process.communicate(timeout=60)
    expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
    assert process.returncode == expected[how]
    assert not (here / "out").exists()
    assert partial.exists() == (how == signal.SIGKILL)
    assert soup("large other -o out") == 0
    assert values("out") == (3.0, 3.0)
    assert not partial.exists() and not os.path.exists(here / ".out.lock")
