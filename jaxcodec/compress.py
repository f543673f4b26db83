"""The codec and bytes, joined: codes to the content of a .jxc file and back.

data = jaxcodec.pack(codec, jaxcodec.encode(codec, audio), len(audio))
codes, num_samples, _ = jaxcodec.unpack(codec, data)
audio = jaxcodec.decode(codec, codes, num_samples)
"""

from typing import Literal, NamedTuple

import numpy as np

from jaxcodec import bitstream, pretrained
from jaxcodec.inference import TrainedCodec


class WrongModel(bitstream.BitstreamError):
    """The file was made with another model: its codes mean nothing to this one."""


class Unpacked(NamedTuple):
    """What a file holds."""

    codes: np.ndarray  # (Q', T) int32
    num_samples: int
    damaged: list[tuple[int, int]]  # ranges of frames, first and one past the last, whose codes are lost and zero


def pack(codec: TrainedCodec, codes, num_samples: int, *, entropy: bool = True) -> bytes:
    """The content of a .jxc file (docs/format.md) for one clip.

    Args:
      codec: the codec that made the codes.
      codes: (Q', T), the first Q' <= Q codebooks of a clip.
      num_samples: its exact length; T must be codec.num_frames(num_samples).
      entropy: whether the codec's tables are used, where it has some and they make the file smaller.

    Raises:
      ValueError: codes of another shape, or outside [0, codebook_size).
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[1] != codec.num_frames(num_samples):
        raise ValueError(
            f"codes have shape {codes.shape}, a clip of {num_samples} samples has (Q, {codec.num_frames(num_samples)})."
        )
    return bitstream.pack(
        codes,
        codebook_size=codec.codebook_size,
        sample_rate=codec.sample_rate,
        hop_length=codec.hop_length,
        num_samples=num_samples,
        fingerprint=pretrained.fingerprint(codec),
        entropy_model=codec.entropy if entropy else None,
    )


def unpack(codec: TrainedCodec, data: bytes, *, errors: Literal["raise", "report"] = "raise") -> Unpacked:
    """The codes in the content of a .jxc file.

    With errors="report" a damaged block costs its own frames only, which are zero and listed in `damaged`.

    Raises:
      WrongModel: the file was made with another model.
      bitstream.BitstreamError: it is no such file, or damaged; the subclass says how.
    """
    header = bitstream.read_header(data)
    if header.fingerprint != pretrained.fingerprint(codec):
        raise WrongModel(
            f"the file was made with the model {header.fingerprint.hex()}, this one is "
            f"{pretrained.fingerprint(codec).hex()}: load the model it was made with."
        )
    unpacked = bitstream.unpack(data, codec.entropy, errors=errors)
    if unpacked.codes.shape[1] != codec.num_frames(header.num_samples):
        raise bitstream.DamagedHeader(
            f"the file has {unpacked.codes.shape[1]} frames, {header.num_samples} samples of this model have "
            f"{codec.num_frames(header.num_samples)}."
        )
    return Unpacked(unpacked.codes.astype(np.int32), header.num_samples, unpacked.damaged)
