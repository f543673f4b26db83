"""Scalars read back from TensorBoard events."""

import pytest
from tensorboardX import SummaryWriter

from jaxcodec import events


def write(directory, values, tag="validation/snr", **more):
    writer = SummaryWriter(str(directory), **more)
    for step, value in values:
        writer.add_scalar(tag, value, step)
    writer.add_text("config", "no scalar")
    writer.close()


def test_scalars_come_back_by_tag_and_step(tmp_path):
    write(tmp_path, [(200, 3.5), (100, -1.25)])
    assert events.read_scalars(tmp_path) == {"validation/snr": [(100, -1.25), (200, 3.5)]}


def test_a_resumed_runs_later_values_replace_those_it_repeats(tmp_path):
    write(tmp_path, [(100, 1.0), (200, 2.0)], filename_suffix=".a")
    write(tmp_path, [(200, 2.5), (300, 3.0)], filename_suffix=".b")
    for name, suffix in (("1", ".a"), ("2", ".b")):
        (path,) = tmp_path.glob(f"*{suffix}")
        path.rename(tmp_path / f"events.out.tfevents.{name}")
    assert events.read_scalars(tmp_path)["validation/snr"] == [(100, 1.0), (200, 2.5), (300, 3.0)]


def test_a_record_still_being_written_is_left_out(tmp_path):
    write(tmp_path, [(100, 1.0), (200, 2.0)])
    (path,) = tmp_path.glob("events*")
    whole = path.read_bytes()
    counts = {len(events.read_scalars(tmp_path).get("validation/snr", [])) for _ in cut(path, whole)}
    assert counts == {0, 1, 2}


def cut(path, whole):
    for size in range(len(whole), 0, -7):
        path.write_bytes(whole[:size])
        yield size


def test_a_folder_without_events_and_a_damaged_file_are_named(tmp_path):
    with pytest.raises(ValueError, match="no TensorBoard events in"):
        events.read_scalars(tmp_path)
    write(tmp_path, [(100, 1.0)])
    (path,) = tmp_path.glob("events*")
    data = bytearray(path.read_bytes())
    data[12:20] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        events.read_scalars(tmp_path)
