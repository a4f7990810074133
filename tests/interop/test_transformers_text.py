"""BERT, Llama, Mistral and Qwen2 of `transformers`: logits, round trips, soups."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensjax
from ensjax import interop, weight_space

# Its configurations say rope_parameters from version 5 on.
transformers = pytest.importorskip("transformers", minversion="5.0")
torch = pytest.importorskip("torch")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

WORDS, MEMBERS = 19, 3
BERT = dict(
    vocab_size=WORDS,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=7,
    num_labels=3,
)
LLAMA = dict(
    vocab_size=WORDS,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=12,
)
SHALLOW, SHALLOW_LLAMA = (
    BERT | {"num_hidden_layers": 1},
    LLAMA | {"num_hidden_layers": 1},
)
GELU, TIE = SHALLOW | {"hidden_act": "gelu_new"}, {"tie_word_embeddings": True}
LLAMA3 = dict(
    rope_parameters=dict(
        rope_type="llama3",
        rope_theta=1000.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=16,
    ),
    head_dim=6,
    attention_bias=True,
    mlp_bias=True,
)
LINEAR = dict(
    rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=100.0),
    rms_norm_eps=1e-2,
)
# The configuration's class, the model's class, and what the configuration says. Few
# different architectures, since each is a program of its own.
CASES = {
    "bert_classes": ("BertConfig", "BertForSequenceClassification", BERT),
    "bert_words": ("BertConfig", "BertForMaskedLM", GELU),
    "bert_pretraining": ("BertConfig", "BertForPreTraining", GELU),
    "bert_body": ("BertConfig", "BertModel", SHALLOW | {"layer_norm_eps": 1e-3}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", LLAMA),
    "llama_tied": ("LlamaConfig", "LlamaForCausalLM", LLAMA | TIE),
    "llama_3": ("LlamaConfig", "LlamaForCausalLM", SHALLOW_LLAMA | LLAMA3),
    "llama_linear": ("LlamaConfig", "LlamaForCausalLM", SHALLOW_LLAMA | LINEAR),
    "llama_body": ("LlamaConfig", "LlamaModel", SHALLOW_LLAMA),
    "mistral": (
        "MistralConfig",
        "MistralForCausalLM",
        LLAMA | {"sliding_window": None},
    ),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", SHALLOW_LLAMA | TIE),
}
FEW = ("bert_classes", "llama", "mistral", "qwen2")
EACH = pytest.mark.parametrize(
    "name",
    [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in CASES],
)

TOKENS = np.random.default_rng(0).integers(0, WORDS, (4, 6))
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]] * 2)


def build(name, seed, dtype=torch.float32):
    """A model of theirs with weights far from zero, so that every part matters."""
    config, model, options = CASES[name]
    model = getattr(transformers, model)(getattr(transformers, config)(**options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for values in model.parameters():
            values.add_(0.3 * torch.randn(values.shape, generator=generator))
    return model.to(dtype).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of three checkpoints of a case, written when they are first asked for."""
    root = tmp_path_factory.mktemp("published")

    @functools.cache
    def of(name, dtype=torch.float32):
        paths = [root / f"{name}-{dtype}-{seed}" for seed in range(MEMBERS)]
        for seed, path in enumerate(paths):
            build(name, seed, dtype).save_pretrained(path)
        return tuple(paths)

    return of


def read(checkpoints, **options):
    """Our ensemble of them, on one device: every device is a program more."""
    mesh = ensjax.make_mesh(devices=jax.devices()[:1])
    return interop.from_checkpoints(checkpoints, mesh=mesh, **options)


@pytest.fixture(scope="module")
def ensembles(folders):
    return functools.cache(lambda name: read(folders(name)))


def load(name, folder):
    """The model of a folder."""
    model = getattr(transformers, CASES[name][1])
    return model.from_pretrained(folder, dtype=torch.float32).eval()


def their_outputs(model, token_types=None):
    """What our head gives: logits, or what a body says, `[batch, ...]`."""
    types = {} if token_types is None else {"token_type_ids": torch.tensor(token_types)}
    with torch.no_grad():
        outputs = model(torch.tensor(TOKENS), torch.tensor(MASK), **types)
    names = ("logits", "prediction_logits", "pooler_output", "last_hidden_state")
    return next(outputs[name] for name in names if name in outputs).numpy()


def assert_outputs_equal(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    if expected.ndim == 3:  # what is said at padding means nothing
        actual, expected = np.asarray(actual)[MASK == 1], expected[MASK == 1]
    np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=tolerance)
    assert np.ptp(expected) > 0.3


def tensors_of(folder):
    return safetensors_numpy.load_file(folder / "model.safetensors")


def assert_same_bits(actual, expected):
    assert set(actual) == set(expected)
    for name, values in expected.items():
        assert actual[name].dtype == values.dtype, name
        assert actual[name].shape == values.shape, name
        assert actual[name].tobytes() == values.tobytes(), name


@EACH
def test_logits_of_every_member_equal_those_of_transformers(name, folders, ensembles):
    # Without types of tokens where the soups' test runs the same program.
    types = TOKENS % 2 if name in ("bert_pretraining", "bert_body") else None
    x = (TOKENS, MASK) if types is None else (TOKENS, MASK, types)
    outputs = ensembles(name)(tuple(map(jnp.asarray, x)))
    assert outputs.shape[0] == MEMBERS and outputs.dtype == jnp.float32
    for member, folder in zip(outputs, folders(name), strict=True):
        assert_outputs_equal(member, their_outputs(load(name, folder), types))


@EACH
def test_round_trip_is_exact(name, folders, ensembles):
    for i, folder in enumerate(folders(name)):
        member, original = ensembles(name)[i], tensors_of(folder)
        assert_same_bits(interop.to_checkpoint(member, like=folder), original)
        if name == "bert_pretraining":  # the next sentence's head is only copied
            original = {
                key: values
                for key, values in original.items()
                if "seq_relationship" not in key and "pooler" not in key
            }
        assert_same_bits(interop.to_checkpoint(member), original)


@pytest.mark.parametrize("name", ["bert_words", "llama_tied", "qwen2", "llama"])
def test_state_dicts_in_memory_have_both_names_of_tied_tensors(name, folders):
    model = load(name, folders(name)[1])
    config = model.config.to_dict() | {"architectures": [CASES[name][1]]}
    state = model.state_dict()
    one = read([state], config=config)
    back = interop.to_checkpoint(one, like=state)
    assert_same_bits(back, {key: values.numpy() for key, values in state.items()})


@pytest.mark.parametrize(
    "name", ["llama_3", pytest.param("bert_body", marks=pytest.mark.slow)]
)
def test_bfloat16_is_kept_bit_for_bit_and_computes_in_float32(name, folders):
    paths = folders(name, torch.bfloat16)
    ensemble = read(paths)
    assert {x.dtype.name for x in jax.tree.leaves(ensemble.state)} == {"bfloat16"}
    for i, folder in enumerate(paths):
        assert_same_bits(
            interop.to_checkpoint(ensemble[i], like=folder), tensors_of(folder)
        )
    x = jnp.asarray(TOKENS), jnp.asarray(MASK)
    expected = [their_outputs(load(name, folder)) for folder in paths]
    wide = read(paths, options={"dtype": jnp.float32})(x)
    narrow = ensemble(x)
    assert wide.dtype == narrow.dtype == jnp.float32
    for i in range(MEMBERS):
        assert_outputs_equal(wide[i], expected[i])
        # bfloat16 keeps 8 bits (0.4 %) per operation; some thirty follow each other.
        assert_outputs_equal(narrow[i], expected[i], 0.1 * np.abs(expected[i]).max())


@pytest.mark.parametrize(
    "name",
    [
        "bert_classes",
        "llama",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("bert_words", "llama_tied")
        ),
    ],
)
def test_a_soup_is_loaded_by_from_pretrained(name, folders, ensembles, tmp_path):
    ensemble, like = ensembles(name), folders(name)[0]
    soup = weight_space.uniform_soup(ensemble).model
    interop.write_weights(
        tmp_path / "soup", interop.to_checkpoint(soup, like=like), like=like
    )
    model = load(name, tmp_path / "soup")
    originals = [tensors_of(folder) for folder in folders(name)]
    written = tensors_of(tmp_path / "soup")
    assert set(written) == set(originals[0])
    for key, values in written.items():
        mean = np.mean([each[key] for each in originals], axis=0)
        np.testing.assert_allclose(values, mean, atol=1e-6)
    # Beside two others it runs through the program of all three.
    again = read([tmp_path / "soup", *folders(name)[1:]])
    for ours, back in zip(jax.tree.leaves(soup.state), jax.tree.leaves(again.state)):
        np.testing.assert_array_equal(ours[0], back[0])
    logits = again((jnp.asarray(TOKENS), jnp.asarray(MASK)))[0]
    assert_outputs_equal(logits, their_outputs(model))
    outputs = model.get_output_embeddings()
    if outputs is not None:
        is_tied = outputs.weight is model.get_input_embeddings().weight
        assert is_tied == (name in ("bert_words", "llama_tied"))


def test_a_body_is_read_from_below_a_head(folders, ensembles):
    body = read(folders("llama_linear"), options={"head": "hidden"})
    written = interop.to_checkpoint(body[0])
    original = tensors_of(folders("llama_linear")[0])
    assert_same_bits(
        written,
        {
            key.removeprefix("model."): values
            for key, values in original.items()
            if key != "lm_head.weight"
        },
    )
    kept = interop.to_checkpoint(body[0], like=folders("llama_linear")[0])
    assert_same_bits(kept, original)
