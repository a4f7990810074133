"""`Conv`: convolution whose form is a choice, for weights that are stacked."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.blocks import tracing_members
from ensjax.mesh import tracing_platform
from ensjax.ops.depthwise import depthwise_conv
from ensjax.ops.mixed import mixed_conv, plain_conv
from ensjax.ops.patches import patches_conv
from ensjax.ops.window import Window, explicit_padding

FORMS = ("auto", "plain", "patches", "mixed", "depthwise")
PATCHES_MAX_CHANNELS = 4
# A kernel of so many channels keeps a GPU busy with one member alone.
GPU_PLAIN_CHANNELS = 256

_only_plain = jax.make_user_context(default_value=False)


@contextlib.contextmanager
def tracing_what_forms_compute() -> Iterator[None]:
    """Traces every `Conv` in the plain form, whose numbers all forms have to rounding.

    So that what models compute can be compared whatever forms they hold. A form that
    does not fit its kernel raises all the same.
    """
    with _only_plain(True):
        yield


@dataclasses.dataclass(frozen=True)
class Conv:
    """`jax.lax.conv_general_dilated` computed in the form that is named.

    Every form gives the same numbers to rounding. They differ in speed, since the
    compiler treats a convolution differently under `vmap` over kernels (it becomes
    a grouped convolution) and inside `scan` (on CPU its gradients lose their fast
    path):

    - "plain": `lax.conv_general_dilated` as it is.
    - "patches": slices of the input and one matrix product (`patches_conv`).
    - "mixed": plain forward, gradients as an ordinary convolution and a matrix
      product (`mixed_conv`).
    - "depthwise": a sum of shifted products (`depthwise_conv`); raises unless
      `feature_group_count` is the number of input channels.
    - "auto": a fixed rule of platform, shapes and whether the engine runs several
      members at once. "depthwise" for depthwise kernels and "mixed" for other groups,
      on every platform, for the reason below. Else "plain" on TPU, and on CPU and GPU
      "patches" for kernels of one tap, for strides above 1 (where the gradient of the
      input would multiply inserted zeros) and for at most `PATCHES_MAX_CHANNELS` input
      channels, and "mixed" for the rest; but on GPU "plain" for a member that runs
      alone with at least `GPU_PLAIN_CHANNELS` channels in and out.

    A dilated input (`lhs_dilation`), `batch_group_count` above 1, an `out_sharding`,
    operands that are not real floating point, and empty results always take the
    plain form.

    "mixed" and "depthwise" define their own reverse mode, which may be repeated
    (`grad` of `grad`, `jax.hessian`), but `jax.jvp` and `jax.linearize` of a model
    that holds them raise `TypeError`: choose "patches" there. "plain" with groups
    meets a limit of JAX: inside a `shard_map`, where the engine runs members, its
    gradient under `vmap` over kernels that share their images is JAX's own
    `NotImplementedError`; use "auto" there.

    Models hold it: equal forms are equal and hash alike, so two models built with it
    have equal graphs.

    Raises:
        ValueError: if `form` is unknown, or "depthwise" meets another kernel.

    Example::

        layer = nnx.Conv(16, 32, (3, 3), conv_general_dilated=Conv(), rngs=rngs)
    """

    form: str = "auto"

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(
                f"form must be one of {', '.join(FORMS)}; got {self.form!r}."
            )

    def __call__(
        self,
        lhs: jax.Array,
        rhs: jax.Array,
        window_strides,
        padding,
        lhs_dilation=None,
        rhs_dilation=None,
        dimension_numbers=None,
        feature_group_count: int = 1,
        batch_group_count: int = 1,
        precision=None,
        preferred_element_type=None,
        out_sharding=None,
    ) -> jax.Array:
        """The convolution; arguments, layout and result as `lax.conv_general_dilated`.

        Raises:
            ValueError: if the form is "depthwise" and the kernel is not.
        """
        options = dict(
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            batch_group_count=batch_group_count,
            precision=precision,
            preferred_element_type=preferred_element_type,
        )

        def plain(lhs, rhs):
            return jax.lax.conv_general_dilated(
                lhs, rhs, window_strides, padding, **options
            )

        # lax checks the arguments and says the shape, whichever form computes it.
        result = jax.eval_shape(plain, _abstract(lhs), _abstract(rhs))
        if out_sharding is not None:
            options["out_sharding"] = out_sharding
        is_dilated = lhs_dilation is not None and any(d != 1 for d in lhs_dilation)
        is_float = all(jnp.issubdtype(a.dtype, jnp.floating) for a in (lhs, rhs))
        only_plain = (
            is_dilated
            or batch_group_count != 1
            or out_sharding is not None
            or not is_float
            or math.prod(result.shape) == 0
        )
        if only_plain or self.form == "plain":
            return plain(lhs, rhs)

        numbers = jax.lax.conv_dimension_numbers(
            lhs.shape, rhs.shape, dimension_numbers
        )
        batch, channel, *space = numbers.lhs_spec
        x = _transpose(lhs, (batch, *space, channel))
        kernel_out, kernel_in, *kernel_space = numbers.rhs_spec
        kernel = _transpose(rhs, (*kernel_space, kernel_in, kernel_out))
        window = _window(
            x, kernel, window_strides, padding, rhs_dilation, feature_group_count
        )
        form = self._resolve(x, kernel, window)
        if _only_plain.value:
            return plain(lhs, rhs)
        y = _convolve(
            form,
            x,
            kernel,
            window,
            precision,
            preferred_element_type,
        )
        batch, channel, *space = numbers.out_spec
        y = _transpose(y, tuple(np.argsort((batch, *space, channel)).tolist()))
        assert y.shape == result.shape and y.dtype == result.dtype, (y, result)
        return y

    def _resolve(self, x, kernel, window):
        is_depthwise = window.groups == x.shape[-1]
        if self.form == "depthwise" and not is_depthwise:
            raise ValueError(
                "the depthwise form needs feature_group_count equal to the number of"
                f" input channels, {x.shape[-1]}; got {window.groups}. Use"
                ' Conv("auto") for this layer.'
            )
        if self.form != "auto":
            return self.form
        if window.groups > 1:
            return "depthwise" if is_depthwise else "mixed"
        platform = tracing_platform()
        is_wide = min(kernel.shape[-2:]) >= GPU_PLAIN_CHANNELS
        if platform == "gpu" and is_wide and tracing_members() == 1:
            return "plain"
        if platform not in ("cpu", "gpu"):
            return "plain"
        takes_patches = (
            math.prod(window.shape) == 1
            or max(window.strides) > 1
            or x.shape[-1] <= PATCHES_MAX_CHANNELS
        )
        return "patches" if takes_patches else "mixed"


def _convolve(form, x, kernel, window, precision, preferred_element_type):
    if form == "depthwise":
        return depthwise_conv(x, kernel, window, preferred_element_type)
    functions = {"plain": plain_conv, "patches": patches_conv, "mixed": mixed_conv}
    return functions[form](x, kernel, window, precision, preferred_element_type)


def _window(x, kernel, strides, padding, dilation, groups):
    shape = kernel.shape[:-2]
    dilation = (1,) * len(shape) if dilation is None else tuple(dilation)
    window = Window(shape, tuple(strides), (), dilation, groups)
    padding = explicit_padding(padding, x.shape[1:-1], window.extent, window.strides)
    return dataclasses.replace(window, padding=padding)


def _abstract(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _transpose(x, order):
    return x if order == tuple(range(x.ndim)) else jnp.transpose(x, order)
