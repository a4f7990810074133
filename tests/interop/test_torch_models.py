"""Models of PyTorch and transformers: merged on disk as their own state dicts are."""

import subprocess
import sys

import numpy as np
import pytest

from ensjax import interop, weight_space

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")


def classifier(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 4 * 4, 3),
    )


def interpolated(first, second, alpha):
    """PyTorch's own interpolation of two state dicts; integers of the first."""
    return {
        name: torch.lerp(x, second[name], alpha) if x.is_floating_point() else x
        for name, x in first.items()
    }


def test_the_alpha_curve_of_a_torch_model_is_that_of_torch(tmp_path):
    """The way for a user of PyTorch: files, `read_stacked`, `sweep`, a curve."""
    ends = [classifier(seed).eval() for seed in (0, 1)]
    for i, model in enumerate(ends):
        safetensors_torch.save_file(model.state_dict(), tmp_path / f"{i}.safetensors")
    images, labels = torch.randn(64, 1, 6, 6), torch.randint(0, 3, (64,))
    model, seen = classifier(2).eval(), []

    def evaluate(weights):
        state = {name: torch.from_numpy(x.copy()) for name, x in weights.items()}
        model.load_state_dict(state)  # strict: every name and shape
        seen.append(state)
        with torch.no_grad():
            logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {"loss": loss, "accuracy": accuracy}

    stacked = interop.read_stacked([tmp_path / f"{i}.safetensors" for i in (0, 1)])
    path = weight_space.alpha_path(5)
    found = weight_space.sweep(stacked, path, evaluate=evaluate)
    curve = found.values["weights"]["evaluate"]

    states = [end.state_dict() for end in ends]
    for alpha, mine, loss in zip(np.linspace(0, 1, 5), list(seen), curve["loss"]):
        expected = interpolated(*states, float(alpha))
        for name, x in expected.items():
            # One rounding of float32 more or less; the order of two products.
            torch.testing.assert_close(
                mine[name].to(x.dtype), x, rtol=1e-6, atol=1e-7, msg=name
            )
        assert abs(evaluate(expected_arrays(expected))["loss"] - loss) < 1e-5
    for end, place in zip(ends, (0, -1)):
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(end(images), labels)
        assert abs(float(loss) - curve["loss"][place]) < 1e-6
    assert len(set(curve["loss"])) == 5


def expected_arrays(state):
    return {name: x.numpy() for name, x in state.items()}


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_merged_file_is_loaded_by_torch_strictly(tmp_path, form):
    models = [classifier(seed) for seed in range(3)]
    files = [tmp_path / f"{i}.{form}" for i in range(3)]
    for model, file in zip(models, files):
        if form == "bin":
            torch.save(model.state_dict(), file)
        else:
            safetensors_torch.save_model(model, file)
    interop.merge_folders(files, tmp_path / "out", knobs={"weights": [1, 1, 2]})
    merged = classifier(9)
    safetensors_torch.load_model(merged, tmp_path / "out" / "model.safetensors")
    states = [model.state_dict() for model in models]
    for name, x in merged.state_dict().items():
        own = [state[name] for state in states]
        expected = own[0]
        if x.is_floating_point():
            expected = (own[0] + own[1] + 2 * own[2]) / 4
        torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-7)


def test_tied_tensors_of_a_state_dict_are_merged_once_and_loaded(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.embed = torch.nn.Embedding(7, 4)
            self.head = torch.nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

    for i in range(2):
        torch.save(Tied(i).state_dict(), tmp_path / f"{i}.pt")
    files = [tmp_path / "0.pt", tmp_path / "1.pt"]
    lineage = interop.merge_folders(files, tmp_path / "out")
    assert lineage["ties"] == {"head.weight": "embed.weight"}
    merged = Tied(5)
    safetensors_torch.load_model(merged, tmp_path / "out" / "model.safetensors")
    expected = (Tied(0).embed.weight + Tied(1).embed.weight) / 2
    torch.testing.assert_close(merged.head.weight, expected)


class TestTransformers:
    """Folders of `save_pretrained`, with random weights and tiny shapes."""

    @pytest.fixture(scope="class")
    def transformers(self):
        return pytest.importorskip("transformers")

    def build(self, transformers, kind, seed):
        torch.manual_seed(seed)
        small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        wide = small | {"intermediate_size": 24}
        text = wide | {"vocab_size": 40, "max_position_embeddings": 16}
        if kind == "bert":
            config = transformers.BertConfig(**text, num_labels=3)
            return transformers.BertForSequenceClassification(config)
        if kind == "bert tied":
            return transformers.BertForMaskedLM(transformers.BertConfig(**text))
        if kind == "llama tied":
            config = transformers.LlamaConfig(
                **text, num_key_value_heads=1, tie_word_embeddings=True
            )
            return transformers.LlamaForCausalLM(config)
        if kind == "vit":
            config = transformers.ViTConfig(**wide, image_size=8, patch_size=4)
            return transformers.ViTForImageClassification(config)
        if kind == "clip":
            vision = wide | {"image_size": 8, "patch_size": 4}
            config = transformers.CLIPConfig(
                text_config=text | {"eos_token_id": 39},
                vision_config=vision,
                projection_dim=8,
            )
            return transformers.CLIPModel(config)
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"
        )
        return transformers.ResNetForImageClassification(config)

    def outputs(self, kind, model):
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(2, 39, (2, 6), generator=generator)
        size = 32 if kind == "resnet" else 8
        pixels = torch.randn(2, 3, size, size, generator=generator)
        inputs = {"pixel_values": pixels} if kind in ("vit", "resnet") else {}
        if kind == "clip":
            inputs = {"pixel_values": pixels, "input_ids": ids}
        inputs = inputs or {"input_ids": ids}
        with torch.no_grad():
            found = model.eval()(**inputs)
        return found.logits_per_image if kind == "clip" else found.logits

    @pytest.mark.parametrize(
        "kind",
        [
            "llama tied",
            "resnet",
            *(
                pytest.param(kind, marks=pytest.mark.slow)
                for kind in ("bert", "bert tied", "vit", "clip")
            ),
        ],
    )
    def test_a_merged_folder_loads_and_is_the_mean(self, transformers, tmp_path, kind):
        models = [self.build(transformers, kind, seed) for seed in range(2)]
        folders = [tmp_path / f"m{i}" for i in range(2)]
        for model, folder in zip(models, folders):
            model.save_pretrained(folder)
        interop.merge_folders(folders, tmp_path / "out", knobs={"weights": [1, 3]})
        merged, told = type(models[0]).from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            assert not told[problem], told
        states = [model.state_dict() for model in models]
        mean = interpolated(*states, 0.75)
        for name, x in merged.state_dict().items():
            torch.testing.assert_close(x, mean[name], rtol=1e-6, atol=1e-7, msg=name)
        expected = self.build(transformers, kind, 5)
        expected.load_state_dict(mean)
        found = self.outputs(kind, merged)
        torch.testing.assert_close(
            found, self.outputs(kind, expected), rtol=1e-5, atol=1e-5
        )
        assert (found - self.outputs(kind, models[1])).abs().max() > 1e-4
        if "tied" in kind:
            embeddings = merged.get_input_embeddings().weight
            assert merged.get_output_embeddings().weight is embeddings

    def test_shards_task_vectors_and_another_type_load_too(
        self, transformers, tmp_path
    ):
        base, *members = [self.build(transformers, "llama tied", i) for i in range(3)]
        base.save_pretrained(tmp_path / "z")
        for i, model in enumerate(members):
            model.save_pretrained(tmp_path / f"m{i}", max_shard_size="5KB")
        assert (tmp_path / "m0" / "model.safetensors.index.json").exists()
        interop.merge_folders(
            [tmp_path / "m0", tmp_path / "m1"],
            tmp_path / "out",
            base=tmp_path / "z",
            method="task_arithmetic",
            knobs={"lam": 0.5},
            dtype="bfloat16",
            max_shard_size="5KB",
        )
        assert (tmp_path / "out" / "model.safetensors.index.json").exists()
        merged = type(base).from_pretrained(tmp_path / "out", dtype="auto")
        assert merged.dtype == torch.bfloat16
        states = [model.state_dict() for model in (base, *members)]
        for name, x in merged.state_dict().items():
            origin, first, second = (state[name] for state in states)
            expected = origin + 0.5 * ((first - origin) + (second - origin))
            torch.testing.assert_close(
                x, expected.to(torch.bfloat16), rtol=2**-7, atol=1e-6
            )

    @pytest.mark.parametrize("kind", ["llama tied", "clip"])
    def test_a_base_of_another_type_rounds_nothing(self, transformers, tmp_path, kind):
        base, *members = [self.build(transformers, kind, i) for i in range(3)]
        base.to(torch.bfloat16).save_pretrained(tmp_path / "z")
        folders = [tmp_path / f"m{i}" for i in range(2)]
        for model, folder in zip(members, folders):
            model.save_pretrained(folder)
        interop.merge_folders(
            folders,
            tmp_path / "out",
            base=tmp_path / "z",
            method="task_arithmetic",
            knobs={"lam": 0.5},
        )
        stacked = interop.read_stacked(folders)
        mean = {name: rows.mean(0) for name, rows in stacked.items()}
        interop.write_weights(tmp_path / "mean", mean, like=tmp_path / "z")
        for place in ("out", "mean"):
            merged = type(base).from_pretrained(tmp_path / place)
            found = merged.state_dict()
            for name, x in mean.items():
                # To the rounding of float32; that of bfloat16 is 4e-3.
                torch.testing.assert_close(
                    found[name], torch.tensor(x), rtol=1e-5, atol=1e-7
                )

    def test_a_stack_goes_back_to_folders_that_load(self, transformers, tmp_path):
        models = [self.build(transformers, "bert tied", seed) for seed in range(2)]
        folders = [tmp_path / f"m{i}" for i in range(2)]
        for model, folder in zip(models, folders):
            model.save_pretrained(folder)
        stacked = interop.read_stacked(folders)
        back = [tmp_path / f"back{i}" for i in range(2)]
        interop.write_members(back, stacked, like=folders[0])
        for model, folder in zip(models, back):
            again = type(model).from_pretrained(folder)
            for name, x in again.state_dict().items():
                assert torch.equal(x, model.state_dict()[name]), name


def test_the_room_loads_no_torch():
    code = "import sys, ensjax.interop; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
