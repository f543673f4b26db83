"""A trained codec as a pytree: weights, what the quantizer keeps, and what they mean."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import flax.struct
import flax.traverse_util
import jax
import numpy as np

from jaxcodec import programs, quantizers, recipe
from jaxcodec.codec import Codec
from jaxcodec.inference import clips
from jaxcodec.nn import layers

_Function = TypeVar("_Function", bound=Callable)


class TrainedCodec(flax.struct.PyTreeNode):
    """Weights and quantizer of a codec, with what they mean. Made by `jaxcodec.load`.

    The functions that take one as their first argument are its methods too: `codec.encode(audio)`.
    """

    encode: ClassVar[Any]  # this and the next are set by `method`, in the modules of the functions
    decode: ClassVar[Any]
    latents: ClassVar[Any]
    quantize: ClassVar[Any]
    dequantize: ClassVar[Any]
    synthesize: ClassVar[Any]
    reconstruct: ClassVar[Any]
    compress: ClassVar[Any]
    decompress: ClassVar[Any]
    pack: ClassVar[Any]
    unpack: ClassVar[Any]

    params: dict
    constants: dict[str, jax.Array]  # of the quantizer: the centroids (Q, K, D) of codebooks
    module: Codec = flax.struct.field(pytree_node=False)
    config: Any = flax.struct.field(pytree_node=False)  # sections model and fixes of the recipe, frozen
    entropy: Any = flax.struct.field(pytree_node=False, default=None)  # probability model of the entropy coder, or None
    fast_entropy: Any = flax.struct.field(
        pytree_node=False, default=None
    )  # one that predicts many frames at once, or None

    def __repr__(self):
        model, leaves = self.config.model, jax.tree.leaves((self.params, self.constants))
        concrete = all(isinstance(leaf, np.ndarray | jax.Array) for leaf in leaves) and not clips.is_traced(leaves)
        name = self.fingerprint.hex() if concrete else "traced"
        bits = self.bits_per_second
        rate = "any rate" if bits is None else f"{bits / 1000:g} kbit/s"
        return f"TrainedCodec({name}, {model.architecture}, {model.quantizer}, {self.sample_rate} Hz, {rate})"

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.module.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return self.module.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.module.frame_rate

    @functools.cached_property
    def knob(self) -> quantizers.Knob:
        """What sets its rate."""
        return quantizers.kind_of(self.config.model).knob

    @functools.cached_property
    def num_codebooks(self) -> int:
        """Codes a frame at the best rate, Q."""
        return self.module.quantizer.num_rows(self.module.quantizer.check_rate(None))

    @property
    def codebook_size(self) -> int:
        """Values of a code, K."""
        least, greatest = self.module.quantizer.code_range
        return greatest - least + 1

    @property
    def bits_per_second(self) -> float | None:
        """Nominal rate at best, None where entropy coding alone decides."""
        return self.module.bits_per_second(self.module.quantizer.check_rate(None))

    @property
    def causal(self) -> bool:
        """Whether it can stream: no frame sees a later one, but for a bounded look-ahead of the decoder, see `delay`."""
        return self.module.encoder.network.causal and self.module.decoder.network.causal

    @property
    def delay(self) -> int:
        """Samples by which a causal codec's stream of decoded audio lags behind the stream of codes.

        A hop for every frame after frame t that block t of samples needs: one for the overlap of an MDCT, and the frames
        that the decoder looks ahead.
        """
        return self.module.decoder.network.context[1] * self.hop_length

    @property
    def latency(self) -> float | None:
        """Algorithmic latency in seconds, from a sample to its decoded self; None where the codec is not causal."""
        return (self.hop_length + self.delay) / self.sample_rate if self.causal else None

    @property
    def entropies(self) -> list:
        """The probability models that its files may be coded with."""
        models = self.entropy, self.fast_entropy, getattr(self.entropy, "earlier", None)
        return [model for model in models if model is not None]

    def num_frames(self, num_samples):
        """Frames of a clip of `num_samples` samples, an int or an array of ints."""
        return self.module.num_frames(num_samples)

    @property
    def variables(self) -> dict:
        """The collections that `module.apply` takes."""
        return self.module.collections(self.params, self.module.quantizer.state_of(self.constants))

    @functools.cached_property
    def ready(self) -> "TrainedCodec":
        """The same, with what the search for codes makes of the codebooks: many short steps do it once."""
        with jax.ensure_compile_time_eval():
            return self.replace(constants=programs.call(self.module.quantizer.ready, self.constants))

    def with_beams(self, beams: int) -> "TrainedCodec":
        """The same codec with a search for codes of `beams` beams (`quantizers.rvq.search`).

        Fewer are faster and leave more error, 1 takes the nearest entry of every codebook. Its codes are decoded as all
        others are.

        Raises:
          ValueError: a number of beams that cannot be, a codec that searches for nothing.
        """
        quantizer = self.module.quantizer
        if not hasattr(quantizer, "beams"):
            raise ValueError("this codec has no codebooks to search: beams belong to tokens.")
        if not isinstance(beams, int) or not 1 <= beams <= self.codebook_size:
            raise ValueError(f"beams is {beams}, expected 1 to {self.codebook_size}.")
        return self.replace(module=self.module.clone(quantizer=quantizer.clone(beams=beams)))

    def with_matmul_precision(self, matmul_precision: str) -> "TrainedCodec":
        """The same codec with networks that multiply in "bfloat16", or at JAX's "default", which is float32 on a CPU.

        Factors are bfloat16 and sums float32, on every device as by default on a TPU. Sound then is as near as bfloat16
        rounds, codes differ where two are as near as that, and a search of one beam rounds its products too. Faster where
        the device has instructions for it and a clip many frames; slower for streams of a few, and on other CPUs.

        Raises:
          ValueError: another precision, networks of convolutions.
        """
        if matmul_precision not in layers.MATMUL_PRECISIONS:
            known = quantizers.expected(layers.MATMUL_PRECISIONS)
            raise ValueError(f'matmul_precision is "{matmul_precision}", expected {known}.')
        if not hasattr(self.module.decoder.network, "matmul_precision"):
            raise ValueError("this codec's networks are convolutions: matmul_precision is for those of dense layers.")
        return self.replace(module=self.module.with_matmul_precision(matmul_precision))

    @property
    def matmul_precision(self) -> str:
        """What its networks multiply in, see `with_matmul_precision`."""
        return getattr(self.module.decoder.network, "matmul_precision", "default")

    @functools.cached_property
    def fingerprint(self) -> bytes:
        """8 bytes that name the weights, the quantizer and the recipe: equal for codecs that make the same codes."""
        return recipe.fingerprint(self.config.to_dict(), self.arrays)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Weights and constants by their path, "params/encoder/network/input/kernel"."""
        tree = {"params": self.params, self.module.quantizer.collection: self.constants}
        return {name: np.asarray(x) for name, x in flax.traverse_util.flatten_dict(tree, sep="/").items()}

    def check_rate(self, rate=None, named: dict | None = None):
        """The rate that is meant: given, or `named` as the arguments of the knobs, or the quantizer's own for None.

        Raises:
          ValueError: a rate that this codec has not, or one that is traced.
          TypeError: another argument than its knobs'.
        """
        named, knobs = dict(named or {}), quantizers.kind_of(self.config.model).knobs
        if clips.is_traced(rate, named):
            names = " or ".join(knob.argument for knob in knobs)
            raise ValueError(
                f"a traced {names}: give a Python number, under jit by static_argnames or functools.partial."
            )
        rate = named.pop(knobs[0].argument, rate)
        if len(knobs) == 2 and knobs[1].argument in named:
            second = named.pop(knobs[1].argument)
            rate = (rate[0] if isinstance(rate, tuple | list) else rate, second)
        if named:
            expected = " and ".join(knob.argument for knob in knobs)
            raise TypeError(f"unexpected {', '.join(named)}: the rate of this codec is set by {expected}.")
        return self.module.quantizer.check_rate(rate)


def faster(codec: TrainedCodec, beams: int | None = None, matmul_precision: str | None = None) -> TrainedCodec:
    """The codec with those of its settings that are not None. Raises `ValueError` as their methods do."""
    codec = codec if beams is None else codec.with_beams(beams)
    return codec if matmul_precision is None else codec.with_matmul_precision(matmul_precision)


def method(function: _Function) -> _Function:
    """Makes a function whose first argument is a codec a method of codecs too."""
    setattr(TrainedCodec, function.__name__, function)
    return function
