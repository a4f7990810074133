"""Published names of BERT and Llama, without the packages that write them."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from ensjax import interop, weight_space
from ensjax.nn import BERT, Llama

WIDTH, HIDDEN, WORDS = 8, 12, 19
BERT_CONFIG = dict(
    model_type="bert",
    architectures=["BertForMaskedLM"],
    vocab_size=WORDS,
    hidden_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=HIDDEN,
    max_position_embeddings=7,
)
LLAMA_CONFIG = dict(
    model_type="llama",
    architectures=["LlamaForCausalLM"],
    vocab_size=WORDS,
    hidden_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=HIDDEN,
    tie_word_embeddings=True,
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, WORDS, (4, 6)))


def drawn(shapes, seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=shape).astype(dtype) for k, shape in shapes.items()}


def _linear(name, num_out, num_in):
    return {f"{name}.weight": (num_out, num_in), f"{name}.bias": (num_out,)}


def _norm(name):
    return {f"{name}.gamma": (WIDTH,), f"{name}.beta": (WIDTH,)}


def bert_tensors(seed):
    """As the first conversions of BERT were written, with the next sentence's head."""
    shapes = {
        "bert.embeddings.word_embeddings.weight": (WORDS, WIDTH),
        "bert.embeddings.position_embeddings.weight": (7, WIDTH),
        "bert.embeddings.token_type_embeddings.weight": (2, WIDTH),
        **_norm("bert.embeddings.LayerNorm"),
    }
    for i in range(2):
        own = f"bert.encoder.layer.{i}."
        for part in ("query", "key", "value"):
            shapes |= _linear(f"{own}attention.self.{part}", WIDTH, WIDTH)
        shapes |= _linear(f"{own}attention.output.dense", WIDTH, WIDTH)
        shapes |= _norm(f"{own}attention.output.LayerNorm")
        shapes |= _linear(f"{own}intermediate.dense", HIDDEN, WIDTH)
        shapes |= _linear(f"{own}output.dense", WIDTH, HIDDEN)
        shapes |= _norm(f"{own}output.LayerNorm")
    shapes |= _linear("bert.pooler.dense", WIDTH, WIDTH)
    shapes |= {"cls.predictions.bias": (WORDS,)}
    shapes |= _linear("cls.predictions.transform.dense", WIDTH, WIDTH)
    shapes |= _norm("cls.predictions.transform.LayerNorm")
    shapes |= _linear("cls.seq_relationship", 2, WIDTH)
    tensors = drawn(shapes, seed) | {"bert.embeddings.position_ids": np.arange(7)[None]}
    words = tensors["bert.embeddings.word_embeddings.weight"]
    return tensors | {"cls.predictions.decoder.weight": words}


def llama_tensors(seed, dtype=np.float32):
    shapes = {
        "model.embed_tokens.weight": (WORDS, WIDTH),
        "model.norm.weight": (WIDTH,),
        # A buffer that early versions wrote.
        "model.layers.1.self_attn.rotary_emb.inv_freq": (1,),
    }
    for i in range(2):
        own = f"model.layers.{i}."
        shapes |= {
            f"{own}self_attn.q_proj.weight": (WIDTH, WIDTH),
            f"{own}self_attn.k_proj.weight": (WIDTH // 2, WIDTH),
            f"{own}self_attn.v_proj.weight": (WIDTH // 2, WIDTH),
            f"{own}self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{own}mlp.gate_proj.weight": (HIDDEN, WIDTH),
            f"{own}mlp.up_proj.weight": (HIDDEN, WIDTH),
            f"{own}mlp.down_proj.weight": (WIDTH, HIDDEN),
            f"{own}input_layernorm.weight": (WIDTH,),
            f"{own}post_attention_layernorm.weight": (WIDTH,),
        }
    return drawn(shapes, seed, dtype)


def assert_same_bits(actual, expected):
    assert set(actual) == set(expected)
    for name, values in expected.items():
        assert actual[name].dtype == values.dtype, name
        assert actual[name].tobytes() == values.tobytes(), name


EACH = pytest.mark.parametrize(
    "tensors, config",
    [
        pytest.param(bert_tensors, BERT_CONFIG, id="bert", marks=pytest.mark.slow),
        pytest.param(llama_tensors, LLAMA_CONFIG, id="llama"),
    ],
)


@EACH
def test_round_trip_is_exact(tensors, config):
    originals = [tensors(seed) for seed in range(3)]
    ensemble = interop.from_checkpoints(originals, config=config)
    for i, original in enumerate(originals):
        assert_same_bits(interop.to_checkpoint(ensemble[i], like=original), original)


def test_leaves_are_the_tensors_transposed():
    original = bert_tensors(0)
    bert = interop.from_checkpoints([original], config=BERT_CONFIG)[0]
    query = original["bert.encoder.layer.1.attention.self.query.weight"]
    np.testing.assert_array_equal(bert.blocks[1].attention.query.kernel[...], query.T)
    after = original["bert.encoder.layer.0.attention.output.LayerNorm.gamma"]
    np.testing.assert_array_equal(bert.blocks[0].norm1.scale[...], after)
    last = original["bert.encoder.layer.0.output.LayerNorm.beta"]
    np.testing.assert_array_equal(bert.blocks[0].norm2.bias[...], last)
    original = llama_tensors(0)
    llama = interop.from_checkpoints([original], config=LLAMA_CONFIG)[0]
    block = llama.blocks[1]
    for ours, theirs in {
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    }.items():
        kernel = getattr(block, ours).kernel[...]
        weight = original[f"model.layers.1.{theirs}.weight"]
        np.testing.assert_array_equal(kernel, weight.T)


@EACH
def test_graphs_are_those_of_modules_built_by_hand(tensors, config):
    mine = {
        "bert": lambda rngs: BERT(
            vocabulary=WORDS,
            width=8,
            depth=2,
            num_heads=2,
            mlp_width=12,
            max_tokens=7,
            head="words",
            rngs=rngs,
        ),
        "llama": lambda rngs: Llama(
            vocabulary=WORDS,
            width=8,
            depth=2,
            num_heads=4,
            num_kv_heads=2,
            mlp_width=12,
            tied=True,
            rngs=rngs,
        ),
    }[config["model_type"]]
    graph, *_ = nnx.split(mine(nnx.Rngs(params=0)), nnx.Param, ...)
    ensemble = interop.from_checkpoints([tensors(0)], config=config)
    assert ensemble.graph.graphdef == graph


@pytest.mark.slow
def test_a_soup_of_bfloat16_ties_its_words_once():
    originals = [llama_tensors(seed, ml_dtypes.bfloat16) for seed in range(3)]
    words = originals[0]["model.embed_tokens.weight"]
    both = originals[0] | {"lm_head.weight": words}
    ensemble = interop.from_checkpoints([both, *originals[1:]], config=LLAMA_CONFIG)
    assert {x.dtype.name for x in jax.tree.leaves(ensemble.params)} == {"bfloat16"}
    soup = weight_space.uniform_soup(ensemble).model
    stacked = np.stack([each["model.embed_tokens.weight"] for each in originals])
    mean = stacked.astype(np.float32).mean(axis=0).astype(ml_dtypes.bfloat16)
    written = interop.to_checkpoint(soup, like=both)
    embedding = written["model.embed_tokens.weight"]
    assert embedding.tobytes() == written["lm_head.weight"].tobytes()
    # Means that lie between two numbers of bfloat16 may round either way.
    np.testing.assert_allclose(
        embedding.astype(np.float32), mean.astype(np.float32), rtol=2**-7
    )
    assert np.mean(embedding == mean) > 0.9
    assert "lm_head.weight" not in interop.to_checkpoint(soup, like=originals[0])
    assert soup(TOKENS).dtype == jnp.float32


def test_tied_tensors_that_differ_are_refused():
    original = bert_tensors(0)
    name = "cls.predictions.decoder.weight"
    moved = original | {name: original[name] + 1}
    with pytest.raises(ValueError, match="decoder.weight must equal bert.embeddings"):
        interop.from_checkpoints([moved], config=BERT_CONFIG)
    with pytest.raises(ValueError, match="nothing in the model: lm_head.bias"):
        extra = llama_tensors(0) | {"lm_head.bias": np.zeros(WORDS, np.float32)}
        interop.from_checkpoints([extra], config=LLAMA_CONFIG)


@pytest.mark.slow
@EACH
def test_permutations_are_inferred(tensors, config):
    ensemble = interop.from_checkpoints([tensors(0), tensors(1)], config=config)
    spec = weight_space.infer_permutations(ensemble, TOKENS[:1])
    drawn = weight_space.random_permutations(spec, jax.random.key(3), num_members=2)
    moved = weight_space.apply_permutations(ensemble, spec, drawn)
    leaves = (jax.tree.leaves(e.state["params"]) for e in (ensemble, moved))
    changed = [bool(jnp.any(a != b)) for a, b in zip(*leaves, strict=True)]
    assert np.mean(changed) > 0.6
    np.testing.assert_allclose(moved(TOKENS), ensemble(TOKENS), atol=1e-4)


@pytest.mark.parametrize(
    "field, match",
    [
        ({"architectures": None}, "architectures is missing"),
        (
            {"architectures": ["BertForTokenClassification"]},
            r"architectures is \['BertForTokenClassification'\]; supported is",
        ),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type is 'relative_key'; supported is 'absolute'",
        ),
        ({"is_decoder": True}, "is_decoder is True; supported is False"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'; supported is 'gelu' or"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False; supported is"),
    ],
)
def test_fields_of_bert_that_are_not_supported_are_named(field, match):
    with pytest.raises(ValueError, match=match):
        interop.from_checkpoints([bert_tensors(0)], config=BERT_CONFIG | field)


MISTRAL = dict(model_type="mistral", architectures=["MistralForCausalLM"])
QWEN2 = dict(model_type="qwen2", architectures=["Qwen2ForCausalLM"])


@pytest.mark.parametrize(
    "field, match",
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported is 'silu' or"),
        ({"vocab_size": None}, "vocab_size is missing"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "rope_parameters is of type 'yarn'; supported is 'default' or",
        ),
        ({"rope_scaling": {"type": "dynamic"}}, "rope_scaling is of type 'dynamic'"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; supported"),
        ({"architectures": ["LlamaForQuestionAnswering"]}, "architectures is"),
        ({"num_key_value_heads": 3}, "got 4 and 3"),
        (MISTRAL, "sliding_window is 4096; supported is null"),
        (QWEN2 | {"use_sliding_window": True}, "use_sliding_window is True"),
        (
            QWEN2 | {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types is 'sliding_attention'; supported is 'full_attention'",
        ),
        ({"model_type": "qwen3"}, "model_type is 'qwen3'; supported is"),
    ],
)
def test_fields_of_decoders_that_are_not_supported_are_named(field, match):
    with pytest.raises(ValueError, match=match):
        interop.from_checkpoints([llama_tensors(0)], config=LLAMA_CONFIG | field)


def test_old_configurations_say_the_same_of_rotary_frequencies():
    scaling = dict(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=16,
    )
    old = dict(rope_theta=1000.0, rope_scaling={"type": "llama3", **scaling})
    new = {"rope_type": "llama3", "rope_theta": 1000.0, **scaling}
    both = [
        interop.from_checkpoints([llama_tensors(0)], config=LLAMA_CONFIG | fields)
        for fields in (old, {"rope_parameters": new})
    ]
    assert both[0].graph == both[1].graph
    plain = interop.from_checkpoints([llama_tensors(0)], config=LLAMA_CONFIG)
    assert plain.graph != both[0].graph
