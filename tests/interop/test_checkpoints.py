"""Published checkpoints as ensembles: logits, round trips, meshes, errors."""

import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx

import ensjax
from ensjax import interop, nn, weight_space
from ensjax.experiment import ConfigError
from ensjax.experiment.configs import load_module


def _beside(name):
    path = pathlib.Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


numpy_models, published = _beside("numpy_models"), _beside("published")

MAKE = {
    "vit": published.vit_tensors,
    "clip": published.clip_tensors,
    "basic": functools.partial(published.resnet_tensors, block="basic"),
    "bottleneck": functools.partial(published.resnet_tensors, block="bottleneck"),
}
# A program for eight devices takes longer to compile; one test has those.
ONE = ensjax.make_mesh(devices=jax.devices()[:1])
CONFIGS = {"vit": published.VIT, "clip": published.CLIP}
KINDS = pytest.mark.parametrize(
    "name",
    ["vit", "clip", "basic", pytest.param("bottleneck", marks=pytest.mark.slow)],
)


@functools.cache
def checkpoints(name):
    return tuple(MAKE[name](seed) for seed in range(3))


@functools.cache
def ensemble_of(name, devices=None):
    mesh = (
        None if devices is None else ensjax.make_mesh(devices=jax.devices()[:devices])
    )
    return interop.from_checkpoints(
        checkpoints(name), config=CONFIGS.get(name), mesh=mesh
    )


def images(size=8, batch=4):
    """`[batch, channel, height, width]`."""
    rng = np.random.default_rng(7)
    return rng.normal(size=(batch, 3, size, size)).astype(np.float32)


def channels_last(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


TOKENS = np.random.default_rng(8).integers(0, 15, (4, 6))
TOKENS[np.arange(4), (1, 3, 5, 4)] = 15
TOKENS[0, 2:] = (15, 3, 19, 15)  # what follows the end is not read


def inputs(name):
    if name == "clip":
        return {"images": channels_last(images()), "tokens": jnp.asarray(TOKENS)}
    return channels_last(images(8 if name == "vit" else 18))


def assert_close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=tolerance)


def assert_same_tensors(actual, expected):
    assert list(actual) == list(expected)
    for name, values in expected.items():
        assert actual[name].dtype == values.dtype, name
        assert actual[name].shape == values.shape, name
        assert actual[name].tobytes() == values.tobytes(), name


def assert_same_leaves(actual, expected):
    for a, e in zip(
        jax.tree.leaves(actual.state), jax.tree.leaves(expected.state), strict=True
    ):
        np.testing.assert_array_equal(a, e)


def test_vit_equals_its_equations():
    logits = ensemble_of("vit")(inputs("vit"))
    for row, tensors in zip(logits, checkpoints("vit"), strict=True):
        expected = numpy_models.vit_logits(tensors, published.VIT, images())
        assert_close(row, expected)
        assert np.ptp(expected) > 1


@pytest.mark.parametrize(
    "act", ["gelu_new", pytest.param("relu", marks=pytest.mark.slow)]
)
def test_vit_with_another_activation_and_epsilon(act):
    config = published.VIT | {"hidden_act": act, "layer_norm_eps": 0.1}
    one = interop.from_checkpoints(checkpoints("vit")[:1], config=config, mesh=ONE)
    expected = numpy_models.vit_logits(checkpoints("vit")[0], config, images())
    assert_close(one(inputs("vit"))[0], expected)


@pytest.mark.slow
def test_clip_equals_its_equations():
    features = ensemble_of("clip")(inputs("clip"))
    parts = published.CLIP["vision_config"], published.CLIP["text_config"]
    for i, tensors in enumerate(checkpoints("clip")):
        image = numpy_models.clip_image_features(tensors, parts[0], images())
        text = numpy_models.clip_text_features(tensors, parts[1], TOKENS)
        image, text = numpy_models.unit(image), numpy_models.unit(text)
        assert_close(features["images"][i], image)
        assert_close(features["tokens"][i], text)
    model = ensemble_of("clip")[2]
    x = inputs("clip")
    logits = nnx.jit(nn.CLIP.logits_per_image)(model, x["images"], x["tokens"])
    assert_close(logits, np.exp(tensors["logit_scale"]) * image @ text.T)


@pytest.mark.slow
def test_clip_of_early_configurations_reads_the_largest_token():
    text = published.CLIP["text_config"] | {"eos_token_id": 2}
    config = published.CLIP | {"text_config": {}, "text_config_dict": text}
    tensors = checkpoints("clip")[0] | {
        "vision_model.embeddings.position_ids": np.arange(5)[None],
        "text_model.embeddings.position_ids": np.arange(7)[None],
    }
    clip = interop.from_checkpoints([tensors], config=config, mesh=ONE)
    expected = numpy_models.clip_text_features(tensors, text, TOKENS)
    found = clip({"tokens": jnp.asarray(TOKENS)})["tokens"][0]
    assert_close(found, numpy_models.unit(expected))
    assert_same_tensors(interop.to_checkpoint(clip, like=tensors), tensors)


@pytest.mark.parametrize(
    "name", ["basic", pytest.param("bottleneck", marks=pytest.mark.slow)]
)
def test_resnet_equals_its_equations(name):
    logits = ensemble_of(name)(inputs(name))  # no configuration: names and shapes tell
    for row, tensors in zip(logits, checkpoints(name), strict=True):
        expected = numpy_models.resnet_logits(tensors, (1, 2), images(18))
        assert_close(row, expected)
        assert np.ptp(expected) > 0.1


@pytest.mark.slow
def test_zero_shot_classifiers_are_means_of_normalised_prompts():
    tokens = np.random.default_rng(9).integers(0, 16, (5, 3, 6))
    tokens[..., -1] = 15
    found = interop.zero_shot_classifiers(ensemble_of("clip"), tokens)
    assert isinstance(found[0], nn.ClipClassifier)
    logits = found(inputs("clip")["images"])
    parts = published.CLIP["vision_config"], published.CLIP["text_config"]
    for row, tensors in zip(logits, checkpoints("clip"), strict=True):
        text = [
            numpy_models.unit(numpy_models.clip_text_features(tensors, parts[1], each))
            for each in tokens
        ]
        classes = numpy_models.unit(np.mean(text, axis=1))
        image = numpy_models.clip_image_features(tensors, parts[0], images())
        scale = np.exp(tensors["logit_scale"])
        assert_close(row, scale * numpy_models.unit(image) @ classes.T)
    with pytest.raises(TypeError, match="ensemble of ensjax.nn.CLIP"):
        interop.zero_shot_classifiers(ensemble_of("vit"), tokens)
    with pytest.raises(ValueError, match=r"\[class, prompt, token\]"):
        interop.zero_shot_classifiers(ensemble_of("clip"), tokens[0])


@KINDS
def test_round_trip_is_exact(name):
    for i, tensors in enumerate(checkpoints(name)):
        member = ensemble_of(name)[i]
        assert_same_tensors(interop.to_checkpoint(member, like=tensors), tensors)


@KINDS
def test_without_an_original_counters_begin_at_zero(name):
    naming = "torchvision" if name in ("basic", "bottleneck") else None
    written = interop.to_checkpoint(ensemble_of(name)[1], naming=naming)
    expected = checkpoints(name)[1]
    assert set(written) == set(expected)
    for key, values in expected.items():
        if key.endswith("num_batches_tracked"):
            values = np.zeros((), np.int64)
        assert written[key].dtype == values.dtype
        assert written[key].tobytes() == values.tobytes()


@pytest.mark.slow
def test_types_are_kept():
    low = [
        {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()}
        for tensors in checkpoints("vit")
    ]
    ensemble = interop.from_checkpoints(low, config=published.VIT, mesh=ONE)
    assert {x.dtype.name for x in jax.tree.leaves(ensemble.state)} == {"bfloat16"}
    assert_same_tensors(interop.to_checkpoint(ensemble[2], like=low[2]), low[2])
    soup = weight_space.uniform_soup(ensemble).model
    written = interop.to_checkpoint(soup, like=low[0])
    name = "classifier.weight"
    mean = np.mean([tensors[name].astype(np.float32) for tensors in low], axis=0)
    np.testing.assert_array_equal(written[name], mean.astype(ml_dtypes.bfloat16))


def test_folders_are_read_and_a_soup_is_written_beside_its_configuration(tmp_path):
    folders = []
    for i, tensors in enumerate(checkpoints("vit")):
        folders.append(tmp_path / f"seed{i}")
        interop.write_weights(folders[-1], tensors)
        (folders[-1] / "config.json").write_text(json.dumps(published.VIT))
    ensemble = interop.from_checkpoints(folders, member_ids=(7, 1, 3), mesh=ONE)
    assert ensemble.member_ids.tolist() == [7, 1, 3]
    assert_same_leaves(ensemble, ensemble_of("vit"))
    soup = weight_space.uniform_soup(ensemble).model
    written = interop.to_checkpoint(soup, like=folders[0])
    interop.write_weights(tmp_path / "soup", written, like=folders[0])
    file = tmp_path / "soup" / "model.safetensors"
    again = interop.from_checkpoints([file], mesh=ONE)
    assert again.graph == soup.graph
    assert_same_leaves(again, soup)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "bottleneck"])
def test_members_split_over_devices_are_the_same(name):
    tensors = (checkpoints(name) * 3)[:8]
    split = interop.from_checkpoints(tensors, config=CONFIGS.get(name))
    shardings = {x.sharding.spec for x in jax.tree.leaves(split.state)}
    assert shardings == {jax.P("member")} and split.mesh.size == 8
    alone = ensemble_of(name)(inputs(name))
    assert_close(split(inputs(name))[:3], alone, 2e-6)
    back = interop.to_checkpoint(split[7], like=tensors[7])
    assert_same_tensors(back, tensors[7])


def test_a_graph_is_that_of_the_module_built_by_hand():
    def make(rngs):
        return nn.ViT(
            image_shape=(8, 8, 3),
            width=8,
            depth=2,
            num_heads=2,
            mlp_width=12,
            num_outputs=3,
            qkv_bias=True,
            norm_epsilon=1e-6,
            activation="gelu",
            rngs=rngs,
        )

    mine = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(params=0))))
    assert mine == ensemble_of("vit").graph.graphdef


LABELS = np.asarray([0, 1, 2, 1])


def accuracies(logits):
    return (np.asarray(logits).argmax(axis=-1) == LABELS).mean(axis=-1)


@pytest.mark.slow
def test_sweeps_take_them_with_their_batch_statistics():
    x, ensemble = inputs("basic"), ensemble_of("basic")
    path = weight_space.alpha_path(3, num_members=3, ends=(0, 2))
    found = weight_space.sweep(ensemble, path, {"test": (x, jnp.asarray(LABELS))})
    accuracy = found.values["weights"]["test"]["accuracy"]
    assert_close(accuracy[[0, 2]], accuracies(ensemble(x))[[0, 2]])


@pytest.mark.slow
def test_greedy_soups_take_them():
    x, ensemble = inputs("vit"), ensemble_of("vit")
    soup = weight_space.greedy_soup(ensemble, (x, jnp.asarray(LABELS)))
    assert soup.scores[0] == accuracies(ensemble(x)).max()
    kept = np.flatnonzero(soup.weights)
    written = interop.to_checkpoint(soup.model)["classifier.weight"]
    mean = np.mean([checkpoints("vit")[i]["classifier.weight"] for i in kept], axis=0)
    assert_close(written, mean, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vit", pytest.param("clip", marks=pytest.mark.slow), "bottleneck"]
)
def test_permutations_are_inferred(name):
    ensemble = ensemble_of(name)
    x = jax.tree.map(lambda a: a[:1], inputs(name))
    spec = weight_space.infer_permutations(ensemble, x)
    drawn = weight_space.random_permutations(spec, jax.random.key(3), num_members=3)
    assert drawn
    moved = weight_space.apply_permutations(ensemble, spec, drawn)
    kernels = [jax.tree.leaves(e.state["params"]) for e in (ensemble, moved)]
    changed = [bool(jnp.any(a != b)) for a, b in zip(*kernels, strict=True)]
    assert np.mean(changed) > 0.6
    jax.tree.map(assert_close, moved(inputs(name)), ensemble(inputs(name)))


@functools.cache
def with_dropout():
    return interop.from_checkpoints(
        checkpoints("vit"),
        config=published.VIT,
        options={"dropout": 0.1},
        member_ids=(5, 6, 7),
        mesh=ONE,
    )


@pytest.mark.slow
def test_options_of_the_module_are_added_to_the_configuration():
    ensemble = with_dropout()
    streams = jax.tree.leaves(ensemble.state["rest"])
    keys = next(x for x in streams if jnp.issubdtype(x.dtype, jax.dtypes.prng_key))
    assert len({tuple(k) for k in jax.random.key_data(keys).tolist()}) == 3
    assert set(interop.to_checkpoint(ensemble[0])) == set(checkpoints("vit")[0])


@pytest.mark.slow
def test_they_train():
    ensemble, x = with_dropout(), inputs("vit")
    assert_close(ensemble(x), ensemble_of("vit")(x), 1e-6)
    tuned, _ = ensjax.fit(
        ensemble,
        (x, jnp.asarray(LABELS)),
        loss=ensjax.losses.cross_entropy,
        make_tx=optax.sgd,
        hyper=1e-3,
        steps=2,
        batch_size=4,
        seed=0,
    )
    assert np.isfinite(tuned(x)).all() and jnp.any(tuned(x) != ensemble(x))


def test_namings_of_one_architecture_hold_the_same():
    member = ensemble_of("vit")[0]
    for naming in ("transformers, in memory", "timm"):
        named = interop.to_checkpoint(member, naming=naming)
        mixed = [named, checkpoints("vit")[1]]
        found = interop.from_checkpoints(mixed, config=published.VIT, mesh=ONE)
        assert_same_leaves(found, ensemble_of("vit").select([0, 1]))
        again = interop.to_checkpoint(found[0], like=named)
        assert_same_tensors(again, named)
    theirs = checkpoints("vit")[0]
    parts = [
        theirs[f"vit.encoder.layer.1.attention.attention.{part}.weight"]
        for part in ("query", "key", "value")
    ]
    np.testing.assert_array_equal(
        named["blocks.1.attn.qkv.weight"], np.concatenate(parts)
    )
    np.testing.assert_array_equal(
        named["patch_embed.proj.weight"],
        theirs["vit.embeddings.patch_embeddings.projection.weight"],
    )


@pytest.mark.parametrize(
    "field, match",
    [
        ({"hidden_act": "silu"}, "hidden_act is 'silu'; supported is 'gelu' or"),
        ({"model_type": "beit"}, "model_type is 'beit'; supported is clip, "),
        ({"architectures": ["ViTModel"]}, r"architectures is \['ViTModel'\]"),
        ({"hidden_size": 9}, "width 9 with 2 heads"),
        ({"num_hidden_layers": 3}, "missing: vit.encoder.layer.2.attention"),
        ({"num_hidden_layers": 1}, "belong to nothing in the model: vit.encoder.l"),
        ({"qkv_bias": False}, "belong to nothing .*attention.query.bias"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; it must be an integer"),
        ({"num_attention_heads": "2"}, "num_attention_heads is '2'; it must be an int"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5; it must be an integer"),
        ({"patch_size": 0}, "patch_size is 0; it must be an integer from 1"),
        ({"image_size": [8, 8, 8]}, r"image_size is \[8, 8, 8\]; it must be one size"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps is 'x'; it must be a finite number"),
        (
            {"layer_norm_eps": -1.0},
            "layer_norm_eps is -1.0; it must be a finite number",
        ),
        ({"qkv_bias": "no"}, "qkv_bias is 'no'; it must be true or false"),
        (
            {"quantization_config": {"bits": 4}},
            "quantization_config is given; supported",
        ),
        ({"num_labels": 7}, "num_labels is 7, but id2label names 3 classes"),
        ({"model_type": ["vit"]}, r"model_type is \['vit'\]; supported is clip, "),
        ({"architectures": 3}, "architectures is 3; supported is ViTFor"),
        ({"id2label": {"0": "a"}}, r"classifier.weight has shape \(3, 8\); expected"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(field, match):
    with pytest.raises(ValueError, match=match):
        interop.from_checkpoints(checkpoints("vit"), config=published.VIT | field)


def without(name):
    return {k: v for k, v in checkpoints("vit")[1].items() if k != name}


@pytest.mark.parametrize(
    "second, match",
    [
        (without("classifier.bias"), r"checkpoint 1 .*missing: classifier.bias \(3,\)"),
        (
            checkpoints("vit")[1] | {"vit.pooler.dense.bias": np.zeros(8)},
            "checkpoint 1 .*nothing in the model: vit.pooler.dense.bias",
        ),
        (
            checkpoints("vit")[1] | {"classifier.bias": np.zeros(4, np.float32)},
            r"checkpoint 1 .*classifier.bias has shape \(4,\); expected \(3,\)",
        ),
        (
            checkpoints("vit")[1] | {"classifier.bias": np.zeros(3, np.float16)},
            "checkpoint 1 .*head.linear.bias is float16, but float32 in checkpoint 0",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(second, match):
    both = [checkpoints("vit")[0], second]
    with pytest.raises(ValueError, match=match):
        interop.from_checkpoints(both, config=published.VIT)


def test_what_cannot_be_known_or_held_is_refused():
    vit = checkpoints("vit")
    with pytest.raises(ValueError, match="give config="):
        interop.from_checkpoints(vit)
    with pytest.raises(ValueError, match="at least one; got a list"):
        interop.from_checkpoints([])
    with pytest.raises(ValueError, match="at least one; got a str"):
        interop.from_checkpoints("seed0/")
    with pytest.raises(ValueError, match="kind is one of auto, clip"):
        interop.from_checkpoints(vit, kind="vgg", config=published.VIT)
    with pytest.raises(ValueError, match="model_type is 'vit', but kind is 'clip'"):
        interop.from_checkpoints(vit, kind="clip", config=published.VIT)
    wide = {name: x.astype(np.float64) for name, x in vit[0].items()}
    with pytest.raises(ValueError, match="is float64, which JAX holds only with"):
        interop.from_checkpoints([wide], config=published.VIT)
    with pytest.raises(TypeError, match="a checkpoint is a folder"):
        interop.from_checkpoints([3], config=published.VIT)
    deeper = published.resnet_tensors(0, depths=(2, 2))
    with pytest.raises(ValueError, match=r"checkpoint 1 .*depths=\(2, 2\), but"):
        interop.from_checkpoints([checkpoints("basic")[0], deeper])


def test_what_cannot_be_written_is_refused():
    ensemble = ensemble_of("vit")
    with pytest.raises(ValueError, match="3 members; choose one"):
        interop.to_checkpoint(ensemble)
    with pytest.raises(TypeError, match="an nnx module or an ensemble of one; got"):
        interop.to_checkpoint(ensemble.state)
    with pytest.raises(ValueError, match="no published checkpoints .* for a MLP"):
        interop.to_checkpoint(nn.MLP(in_features=2, rngs=nnx.Rngs(params=0)))
    with pytest.raises(ValueError, match="naming is one of transformers, "):
        interop.to_checkpoint(ensemble[0], naming="keras")
    with pytest.raises(ValueError, match="kind is one of .* got 'clip' and a ViT"):
        interop.to_checkpoint(ensemble[0], kind="clip")
    with pytest.raises(ValueError, match="like .*missing: classifier.bias"):
        interop.to_checkpoint(ensemble[0], like=without("classifier.bias"))


@pytest.mark.slow
def test_the_full_size_of_wise_ft_begins_with_a_checkpoint_of_clip(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    full = load_module(root / "experiments" / "wise_ft_full.py", "experiment")
    config = load_module(root / "configs" / "wise_ft.py", "config").get_config("paper")
    config.folder = str(tmp_path)
    for field, value in dict(
        image_size=8,
        patch_size=4,
        width=8,
        depth=2,
        num_heads=2,
        num_features=6,
        num_classes=3,
        dtype="float32",
    ).items():
        config.model[field] = value
    # The MLP has four times the width there.
    theirs = json.loads(json.dumps(published.CLIP))
    theirs["vision_config"]["intermediate_size"] = 32
    tensors = published.clip_tensors(0, theirs)
    interop.write_weights(tmp_path / "zero_shot", tensors)
    (tmp_path / "zero_shot" / "config.json").write_text(json.dumps(theirs))
    tokens = TOKENS[:3, None]
    np.save(tmp_path / "prompts.npy", tokens)
    found = full.load_zero_shot(config)
    made = functools.partial(full.ClipClassifier, config)
    abstract = nnx.eval_shape(lambda: made(rngs=nnx.Rngs(params=0)))
    assert found.graph.graphdef == nnx.graphdef(abstract)

    pixels = np.random.default_rng(3).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    x = (pixels / 255 - full.MEAN) / full.SD
    parts = theirs["vision_config"], theirs["text_config"]
    image = numpy_models.clip_image_features(tensors, parts[0], x.transpose(0, 3, 1, 2))
    text = numpy_models.clip_text_features(tensors, parts[1], tokens[:, 0])
    image, text = numpy_models.unit(image), numpy_models.unit(text)
    expected = np.exp(tensors["logit_scale"]) * image @ text.T
    assert_close(found(jnp.asarray(pixels))[0], expected, 2e-5)

    config.model.num_heads = 4
    with pytest.raises(ConfigError, match="tower is not that of config.model"):
        full.load_zero_shot(config)
    np.save(tmp_path / "prompts.npy", tokens[:2])
    with pytest.raises(ConfigError, match="prompts.npy describes 2 classes"):
        full.load_zero_shot(config)
