"""Building blocks of the encoder and the decoder: masked, frame-wise or convolutional, never normalized over time.

A causal network computes a stream chunk by chunk when it is applied with the collection `CACHE` mutable: each layer keeps
there what it will see of the past, zeros before the first chunk, and a chunk costs what its own frames cost. What a layer
sees ahead it waits for: its frames then come so many later than those that go in.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

MATMUL_PRECISIONS = ("default", "bfloat16")


def dot_general(matmul_precision: str):
    """What dense layers multiply by: JAX's own for "default"; for "bfloat16" factors in that and sums in float32.

    The default is float32 on a CPU and bfloat16 factors on a TPU. A CPU does not hear `jax.default_matmul_precision`.
    """
    return _bfloat16_dot_general if matmul_precision == "bfloat16" else None


def _bfloat16_dot_general(left, right, dimensions, precision=None, preferred_element_type=None):
    factors = left.astype(jnp.bfloat16), right.astype(jnp.bfloat16)
    return lax.dot_general(factors[0], factors[1], dimensions, preferred_element_type=jnp.float32).astype(left.dtype)


def length_mask(lengths: jax.Array, size: int, starts: jax.Array | None = None) -> jax.Array:
    """True where a position exists, from starts (B,) (0 when None) up to lengths (B,): (B, size) bool."""
    positions = jnp.arange(size)[None]
    mask = positions < lengths[:, None]
    return mask if starts is None else mask & (positions >= starts[:, None])


CACHE = "cache"


def streams(module: nn.Module) -> bool:
    """Whether a module is computing the next chunk of a stream."""
    return module.is_mutable_collection(CACHE) and not module.is_initializing()


def padded(module: nn.Module, x: jax.Array, before: int, after: int = 0, name: str = "past") -> jax.Array:
    """x (B, T, ...) with so much around it: zeros or, in a stream, all of it before, from the chunks before."""
    if not streams(module):
        return jnp.pad(x, ((0, 0), (before, after)) + ((0, 0),) * (x.ndim - 2))
    past = module.variable(CACHE, name, jnp.zeros, (len(x), before + after, *x.shape[2:]), x.dtype)
    longer = jnp.concatenate([past.value, x], axis=1)
    past.value = longer[:, x.shape[1] :]
    return longer


def previous(module: nn.Module, x: jax.Array, name: str) -> jax.Array:
    """What the frame before had of x (B, T, ...), zeros at the first."""
    return padded(module, x, 1, name=name)[:, :-1]


def delayed(module: nn.Module, frames: int, *arrays: jax.Array, name: str = "late") -> tuple[jax.Array, ...]:
    """Arrays (B, T, ...) as they are or, in a stream, as they were so many frames ago: beside what had to wait."""
    if not frames or not streams(module):
        return arrays
    return tuple(padded(module, x, frames, name=f"{name}_{i}")[:, : x.shape[1]] for i, x in enumerate(arrays))


class DepthwiseConv(nn.Module):
    """One filter per channel along time, (B, T, C) -> (B, T, C); causal, or centered with zeros beyond both ends.

    A causal one may look ahead by some frames.

    A sum of shifted products: on CPU some 60 times faster than a grouped convolution, and XLA fuses it on accelerators.
    """

    kernel_size: int
    causal: bool = False
    lookahead: int = 0

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.kernel_size, x.shape[-1]))
        left = self.kernel_size - 1 - self.lookahead if self.causal else self.kernel_size // 2
        longer = padded(self, x, left, self.kernel_size - 1 - left)
        taps = [longer[:, i : i + x.shape[1]] * kernel[None, None, i].astype(x.dtype) for i in range(self.kernel_size)]
        return sum(taps[1:], taps[0])


class ConvNeXtBlock(nn.Module):
    """Residual block: depthwise convolution, normalization over channels, two dense layers (Liu et al. 2022, figure 4).

    (B, T, C) with mask (B, T, 1) -> (B, T, C). Frames outside the mask reach no other frame.
    """

    kernel_size: int = 7
    expansion: int = 4
    causal: bool = False
    dtype: jnp.dtype = jnp.float32
    lookahead: int = 0
    matmul_precision: str = "default"

    @nn.compact
    def __call__(self, x, mask):
        width, multiply = x.shape[-1], dot_general(self.matmul_precision)
        y = DepthwiseConv(self.kernel_size, self.causal, self.lookahead)(x * mask)
        y = nn.LayerNorm(dtype=self.dtype)(y)
        y = nn.gelu(nn.Dense(self.expansion * width, dtype=self.dtype, dot_general=multiply)(y))
        y = nn.Dense(width, dtype=self.dtype, dot_general=multiply)(y)
        scale = self.param("layer_scale", nn.initializers.constant(0.1), (width,))
        (x,) = delayed(self, self.lookahead, x)
        return x + y * scale[None, None].astype(x.dtype)


class Conv(nn.Module):
    """Strided convolution, (B, S, C) -> (B, ceil(S / stride), features); causal, or centered with zeros beyond both ends."""

    features: int
    kernel_size: int
    stride: int = 1
    causal: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        tail = -x.shape[1] % self.stride
        context = self.kernel_size - self.stride
        left = context if self.causal else context // 2
        padding = ((left, context - left + tail),)
        if streams(self):  # whole strides of a causal convolution
            x, padding = padded(self, x, context), ((0, 0),)
        return nn.Conv(self.features, (self.kernel_size,), self.stride, padding=padding, dtype=self.dtype)(x)


class UpsamplingConv(nn.Module):
    """Sub-pixel convolution, (B, T, C) -> (B, stride * T, features) (Shi et al. 2016).

    A convolution to stride * features channels and a reshape: the gradient of a transposed convolution is 10 to 90 times
    slower on CPU.
    """

    features: int
    stride: int
    causal: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        y = Conv(self.stride * self.features, 3, causal=self.causal, dtype=self.dtype)(x)
        return y.reshape(x.shape[0], x.shape[1] * self.stride, self.features)


class ResidualUnit(nn.Module):
    """Dilation-free residual unit of SEANet (Tagliasacchi et al. 2020): ELU, convolution, ELU, pointwise convolution."""

    kernel_size: int = 3
    causal: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, mask):
        width = x.shape[-1]
        y = Conv(width // 2, self.kernel_size, causal=self.causal, dtype=self.dtype)(nn.elu(x) * mask)
        return x + Conv(width, 1, dtype=self.dtype)(nn.elu(y))
