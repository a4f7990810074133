"""Against `transformers` and PyTorch: ViT, CLIP and ResNet with random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensjax
from ensjax import interop, weight_space

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("safetensors")
from safetensors.numpy import load_file  # noqa: E402

# A program for eight devices takes longer to compile; test_checkpoints has those.
ONE = ensjax.make_mesh(devices=jax.devices()[:1])


def vit_config():
    return transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        image_size=12,
        patch_size=4,
        num_labels=5,
        initializer_range=0.3,
    )


def clip_config():
    sizes = dict(num_hidden_layers=2, intermediate_size=24)
    return transformers.CLIPConfig(
        vision_config=dict(
            hidden_size=16,
            num_attention_heads=4,
            image_size=12,
            patch_size=4,
            projection_dim=7,
            **sizes,
        ),
        text_config=dict(
            hidden_size=12,
            num_attention_heads=3,
            vocab_size=30,
            max_position_embeddings=6,
            bos_token_id=28,
            eos_token_id=29,
            **sizes,
        ),
        projection_dim=7,
        initializer_factor=8.0,
    )


def resnet_config(layer_type):
    return transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[16, 24],
        depths=[1, 2],
        layer_type=layer_type,
        num_labels=5,
    )


MODELS = {
    "vit": (lambda: transformers.ViTForImageClassification, vit_config),
    "clip": (lambda: transformers.CLIPModel, clip_config),
    "clip image": (
        lambda: transformers.CLIPVisionModelWithProjection,
        lambda: clip_config().vision_config,
    ),
    "basic": (
        lambda: transformers.ResNetForImageClassification,
        lambda: resnet_config("basic"),
    ),
    "bottleneck": (
        lambda: transformers.ResNetForImageClassification,
        lambda: resnet_config("bottleneck"),
    ),
}
FEW = ("vit", "clip", "basic")
EACH = pytest.mark.parametrize(
    "name",
    [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in MODELS],
)
TOKENS = np.array([[28, 3, 29, 1, 1], [28, 4, 5, 6, 29], [28, 29, 2, 29, 7]])


def images(name):
    size = 22 if name in ("basic", "bottleneck") else 12
    rng = np.random.default_rng(3)
    return rng.normal(size=(3, 3, size, size)).astype(np.float32)


def theirs_of(name, model):
    """What a model of theirs says."""
    pixels = torch.from_numpy(images(name))
    with torch.no_grad():
        if name == "clip":
            out = model(pixel_values=pixels, input_ids=torch.from_numpy(TOKENS))
            return {"images": out.image_embeds, "tokens": out.text_embeds}
        out = model(pixel_values=pixels)
    return {"out": out.image_embeds if name == "clip image" else out.logits}


def ours_of(name, model):
    """What an ensemble, or a member, of ours says."""
    x = jnp.asarray(images(name).transpose(0, 2, 3, 1))
    if name == "clip":
        return model({"images": x, "tokens": jnp.asarray(TOKENS)})
    return {"out": model(x)}


def assert_close(actual, expected, *, rows=None):
    assert set(actual) == set(expected)
    for part, values in expected.items():
        values = values.numpy()
        assert np.ptp(values) > 0.1
        found = actual[part] if rows is None else actual[part][rows]
        np.testing.assert_allclose(found, values, atol=1e-5 * np.abs(values).max())


@functools.cache
def models(name):
    """Three models of theirs, whose norms and batch statistics are not the first."""
    get_class, config = MODELS[name]
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = get_class()(config())
        for module in model.modules():
            if isinstance(module, (torch.nn.LayerNorm, torch.nn.BatchNorm2d)):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias)
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.running_mean)
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
                module.num_batches_tracked += seed + 3
            if isinstance(module, torch.nn.Linear) and module.bias is not None:
                torch.nn.init.normal_(module.bias)
        found.append(model.eval())
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved(name)`: folders of the three models, and the ensemble that they make."""

    @functools.cache
    def save(name):
        place = tmp_path_factory.mktemp(name.replace(" ", "_"))
        folders = [place / f"seed{i}" for i in range(3)]
        for model, folder in zip(models(name), folders):
            model.save_pretrained(folder)
        return folders, interop.from_checkpoints(folders, mesh=ONE)

    return save


@pytest.mark.slow
@EACH
def test_members_say_what_their_models_say(name, saved):
    _, ensemble = saved(name)
    found = ours_of(name, ensemble)
    for row, model in enumerate(models(name)):
        assert_close(found, theirs_of(name, model), rows=row)


@pytest.mark.slow
def test_logits_per_image(saved):
    clip = saved("clip")[1][1]
    x = torch.from_numpy(images("clip"))
    with torch.no_grad():
        out = models("clip")[1](pixel_values=x, input_ids=torch.from_numpy(TOKENS))
    pixels = jnp.asarray(images("clip").transpose(0, 2, 3, 1))
    logits = clip.logits_per_image(pixels, jnp.asarray(TOKENS))
    assert_close({"logits": logits}, {"logits": out.logits_per_image})


@EACH
def test_files_come_back_bit_for_bit(name, saved, tmp_path):
    folders, ensemble = saved(name)
    kind = "clip_vision_model" if name == "clip image" else "auto"
    for i, folder in enumerate(folders):
        written = interop.to_checkpoint(ensemble[i], kind=kind, like=folder)
        interop.write_weights(tmp_path / f"{i}", written, like=folder)
        before, after = (
            load_file(place / "model.safetensors")
            for place in (folder, tmp_path / f"{i}")
        )
        assert set(before) == set(after)
        for key, values in before.items():
            assert after[key].dtype == values.dtype
            assert after[key].tobytes() == values.tobytes(), key


@pytest.mark.parametrize(
    "name",
    [n if n == "vit" else pytest.param(n, marks=pytest.mark.slow) for n in MODELS],
)
def test_a_soup_is_read_by_from_pretrained(name, saved, tmp_path):
    folders, ensemble = saved(name)
    soup = weight_space.uniform_soup(ensemble).model
    written = interop.to_checkpoint(soup, like=folders[0])
    interop.write_weights(tmp_path / "soup", written, like=folders[0])
    get_class, _ = MODELS[name]
    model, about = get_class().from_pretrained(
        tmp_path / "soup", output_loading_info=True
    )
    assert not any(about.values()), about
    assert_close(ours_of(name, soup[0]), theirs_of(name, model.eval()))


@EACH
def test_state_dicts_are_taken_as_they_are(name):
    config = models(name)[0].config.to_dict()
    dicts = [model.state_dict() for model in models(name)[:1]]
    ensemble = interop.from_checkpoints(dicts, config=config, mesh=ONE)
    found = ours_of(name, ensemble)
    assert_close(found, theirs_of(name, models(name)[0]), rows=0)


def test_bfloat16_state_dicts_keep_their_bits():
    model = models("vit")[0]
    low = {name: x.bfloat16() for name, x in model.state_dict().items()}
    config = model.config.to_dict()
    ensemble = interop.from_checkpoints([low], config=config, mesh=ONE)
    back = interop.to_checkpoint(ensemble, like=low)
    assert list(back) == list(low)
    for name, values in low.items():
        assert back[name].dtype.name == "bfloat16"
        np.testing.assert_array_equal(
            back[name].astype(np.float32), values.float().numpy()
        )


class Bottleneck(torch.nn.Module):
    """A block under torchvision's names."""

    def __init__(self, num_in, num_out, strides):
        super().__init__()
        inside = num_out // 4
        conv = functools.partial(torch.nn.Conv2d, bias=False)
        self.conv1, self.bn1 = conv(num_in, inside, 1), torch.nn.BatchNorm2d(inside)
        self.conv2 = conv(inside, inside, 3, stride=strides, padding=1)
        self.bn2 = torch.nn.BatchNorm2d(inside)
        self.conv3, self.bn3 = conv(inside, num_out, 1), torch.nn.BatchNorm2d(num_out)
        self.downsample = None
        if strides > 1 or num_in != num_out:
            self.downsample = torch.nn.Sequential(
                conv(num_in, num_out, 1, stride=strides), torch.nn.BatchNorm2d(num_out)
            )

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        x = x if self.downsample is None else self.downsample(x)
        return torch.relu(x + self.bn3(self.conv3(y)))


class Vision(torch.nn.Module):
    """A ResNet under torchvision's names."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(8)
        self.maxpool = torch.nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = torch.nn.Sequential(Bottleneck(8, 16, 1), Bottleneck(16, 16, 1))
        self.layer2 = torch.nn.Sequential(Bottleneck(16, 24, 2))
        self.fc = torch.nn.Linear(24, 5)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


def test_torchvisions_names_need_no_configuration():
    torch.manual_seed(5)
    model = Vision()
    pixels = torch.from_numpy(images("basic"))
    with torch.no_grad():
        model.train()(3 * pixels + 1)  # running statistics that are not the first
        model.eval()
        expected = model(pixels)
    ensemble = interop.from_checkpoints([model.state_dict()] * 2, mesh=ONE)
    found = ours_of("basic", ensemble)
    assert_close(found, {"out": expected}, rows=1)
    back = interop.to_checkpoint(ensemble[0], like=model.state_dict())
    again = Vision()
    again.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in back.items()})
    with torch.no_grad():
        assert torch.equal(again.eval()(pixels), expected)
    assert int(again.bn1.num_batches_tracked) == 1
