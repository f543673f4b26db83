"""Codes to bytes and back: the `.jxc` container and entropy coding. Nothing here imports JAX."""

from jaxcodec.bitstream import checkerboard as checkerboard, prior as prior
from jaxcodec.bitstream.container import (
    BLOCK_FRAMES as BLOCK_FRAMES,
    MAGIC as MAGIC,
    MAX_BLOCK_FRAMES as MAX_BLOCK_FRAMES,
    MAX_CODES_PER_BYTE as MAX_CODES_PER_BYTE,
    VERSIONS as VERSIONS,
    BitstreamError as BitstreamError,
    Content as Content,
    DamagedBlock as DamagedBlock,
    DamagedHeader as DamagedHeader,
    Header as Header,
    MissingEntropyModel as MissingEntropyModel,
    NotABitstream as NotABitstream,
    Packer as Packer,
    TrailingData as TrailingData,
    TruncatedBitstream as TruncatedBitstream,
    UnsupportedVersion as UnsupportedVersion,
    WrongEntropyModel as WrongEntropyModel,
    damaged_blocks as damaged_blocks,
    pack as pack,
    read_header as read_header,
    truncate as truncate,
    unpack as unpack,
    unpack_pieces as unpack_pieces,
    unpack_together as unpack_together,
)
