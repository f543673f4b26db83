"""Scalars read back from the TensorBoard event files of a run, without TensorBoard and without TensorFlow.

An event file is a sequence of TFRecords, each a length (uint64, little endian), its checksum, the payload and the payload's
checksum (4 bytes each); the payload is an `Event` protocol buffer.
"""

import struct
from collections.abc import Iterator

from etils import epath

_HEAD, _TAIL = 12, 4  # bytes around a payload


def read_scalars(directory: epath.PathLike) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(step, value), ...]} of every event file in `directory`, by step.

    Of a step written twice, as a run does that was stopped between its report and its snapshot, the later value counts.

    Raises:
      ValueError: there is no event file, or it cannot be read.
    """
    files = sorted(epath.Path(directory).expanduser().glob("events.out.tfevents.*"))
    if not files:
        raise ValueError(f"There are no TensorBoard events in {directory}: expected the folder that a run writes.")
    scalars: dict[str, dict[int, float]] = {}
    for path in files:
        for tag, step, value in _scalars_of(path):
            scalars.setdefault(tag, {})[step] = value
    return {tag: sorted(by_step.items()) for tag, by_step in sorted(scalars.items())}


def _scalars_of(path) -> Iterator[tuple[str, int, float]]:
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event

    for payload in _records(path.read_bytes()):
        try:
            event = Event.FromString(payload)
        except DecodeError:
            raise ValueError(f"{path} is damaged: a record is not a TensorBoard event.") from None
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                yield value.tag, event.step, value.simple_value


def _records(data: bytes) -> Iterator[bytes]:
    """The payloads; a last one that is still being written is left out."""
    start = 0
    while start + _HEAD <= len(data):
        (size,) = struct.unpack_from("<Q", data, start)
        stop = start + _HEAD + size
        if stop + _TAIL > len(data):
            return
        yield data[start + _HEAD : stop]
        start = stop + _TAIL
