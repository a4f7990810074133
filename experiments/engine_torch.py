"""`torch.func` as an alternative of `bench_engine`: vmap over stacked weights.

The models compute what their `ensjax.nn` counterparts do, from the same parameters:
pure functions of one member's weights, mapped with `torch.func.vmap` and differentiated
with `torch.func.grad`; Adam is written on the stacked tensors. Convolutions become
grouped ones.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

BETA1, BETA2 = 0.9, 0.999


class TorchSteps:
    """Adam steps of all members at once, on stacked tensors.

    Args:
        name: of the workload, a key of `MODELS`.
        params: name -> NumPy array `[member, ...]`, names as paths in the NNX module.
        data: inputs `[example, ...]` and labels `[example]`, NumPy.
        rows: examples of every step, `[step, member, batch]`.
        learning_rate: of Adam.
        epsilon: of Adam.
        device: "cpu" or "cuda".
    """

    def __init__(
        self,
        name: str,
        params: dict[str, np.ndarray],
        data: Sequence[np.ndarray],
        rows: np.ndarray,
        *,
        learning_rate: float,
        epsilon: float,
        device: str,
    ):
        self._learning_rate, self._epsilon = learning_rate, epsilon
        if device == "cuda":  # TF32, as JAX by default
            torch.set_float32_matmul_precision("high")
        self.params = {
            key: torch.tensor(value, device=device) for key, value in params.items()
        }
        self._first = {k: torch.zeros_like(v) for k, v in self.params.items()}
        self._second = {k: torch.zeros_like(v) for k, v in self.params.items()}
        self._count = 0
        self._x = torch.tensor(data[0], device=device)
        self._labels = torch.tensor(data[1], device=device, dtype=torch.long)
        self._rows = torch.tensor(rows, device=device, dtype=torch.long)
        self._sums = torch.zeros((2, rows.shape[1]), device=device)
        loss = functools.partial(_loss, MODELS[name])
        self._gradient = torch.func.vmap(torch.func.grad(loss, has_aux=True))

    def run(self) -> None:
        """One step for each entry of `rows`, waited for."""
        for rows in self._rows:
            grads, metrics = self._gradient(
                self.params, self._x[rows], self._labels[rows]
            )
            self._sums += torch.stack(metrics)
            self._update(grads)
        if self._x.is_cuda:
            torch.cuda.synchronize()

    @torch.no_grad()
    def _update(self, grads):
        # The list operations of torch's own fastest Adam.
        self._count += 1
        names = list(self.params)
        grads = [grads[name] for name in names]
        params, first, second = (
            [tree[name] for name in names]
            for tree in (self.params, self._first, self._second)
        )
        torch._foreach_lerp_(first, grads, 1 - BETA1)
        torch._foreach_mul_(second, BETA2)
        torch._foreach_addcmul_(second, grads, grads, 1 - BETA2)
        scale = torch._foreach_div(second, 1 - BETA2**self._count)
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, self._epsilon)
        size = self._learning_rate / (1 - BETA1**self._count)
        torch._foreach_addcdiv_(params, first, scale, -size)


def _loss(model, params, x, labels):
    logits = model(params, x)
    loss = F.cross_entropy(logits, labels)
    accuracy = (logits.argmax(-1) == labels).float().mean()
    return loss, (loss.detach(), accuracy)


def _linear(params, name, x):
    y = x @ params[f"{name}.kernel"]
    bias = params.get(f"{name}.bias")
    return y if bias is None else y + bias


def _mlp(params, x):
    x = x.flatten(1)
    for i in range(2):
        x = F.relu(_linear(params, f"blocks.{i}.linear", x))
    return _linear(params, "head.linear", x)


def _conv(params, name, x, stride=1):
    """A 3x3 convolution of channels-first images, padded as "SAME"."""
    kernel = params[f"{name}.kernel"].permute(3, 2, 0, 1)
    if stride > 1:  # "SAME" pads an even image at the end only
        x = F.pad(x, (0, 1, 0, 1))
    return F.conv2d(
        x, kernel, params.get(f"{name}.bias"), stride, 1 if stride == 1 else 0
    )


def _cnn(params, x):
    x = x.permute(0, 3, 1, 2)
    for i in range(3):
        x = F.relu(_conv(params, f"blocks.{i}.conv", x))
        x = F.max_pool2d(x, 2) if i < 2 else x
    return _linear(params, "head.linear", x.permute(0, 2, 3, 1).flatten(1))


def _norm(params, name, x):
    """Batch norm by the statistics of the batch; running averages are left out."""
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = x.var((0, 2, 3), unbiased=False, keepdim=True)
    scale, bias = params[f"{name}.scale"], params[f"{name}.bias"]
    x = (x - mean) * torch.rsqrt(variance + 1e-5)
    return x * scale[:, None, None] + bias[:, None, None]


def _resnet20(params, x):
    x = x.permute(0, 3, 1, 2)
    x = F.relu(_norm(params, "norm", _conv(params, "stem", x)))
    for i in range(9):
        name, stride = f"blocks.{i}", 2 if i in (3, 6) else 1
        y = _conv(params, f"{name}.conv1", x, stride)
        y = F.relu(_norm(params, f"{name}.norm1", y))
        y = _norm(params, f"{name}.norm2", _conv(params, f"{name}.conv2", y))
        x = x[:, :, ::stride, ::stride]
        x = F.relu(F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1])) + y)
    return _linear(params, "head.linear", x.mean((2, 3)))


def _layer_norm(params, name, x):
    scale, bias = params[f"{name}.scale"], params[f"{name}.bias"]
    return F.layer_norm(x, x.shape[-1:], scale, bias, 1e-6)


def _vit(params, x, *, patch=7, heads=4, depth=2):
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    x = x.transpose(2, 3).reshape(batch, -1, patch * patch * channels)
    x = _linear(params, "embed", x)
    token = params["token"].expand(batch, 1, x.shape[-1])
    x = torch.cat([token, x], 1) + params["positions"]
    for i in range(depth):
        name = f"blocks.{i}"
        qkv = _linear(params, f"{name}.qkv", _layer_norm(params, f"{name}.norm1", x))
        qkv = qkv.reshape(batch, x.shape[1], 3, heads, -1).permute(2, 0, 3, 1, 4)
        scores = qkv[0] @ qkv[1].transpose(-1, -2) / qkv.shape[-1] ** 0.5
        attended = scores.softmax(-1) @ qkv[2]
        attended = attended.transpose(1, 2).reshape(x.shape)
        x = x + _linear(params, f"{name}.out", attended)
        y = _linear(params, f"{name}.linear1", _layer_norm(params, f"{name}.norm2", x))
        x = x + _linear(params, f"{name}.linear2", F.gelu(y, approximate="tanh"))
    return _linear(params, "head.linear", _layer_norm(params, "norm", x)[:, 0])


MODELS: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "mlp-small": _mlp,
    "mlp-large": _mlp,
    "cnn": _cnn,
    "resnet20": _resnet20,
    "vit": _vit,
}
