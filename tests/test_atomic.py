"""A file is the old one or the new one."""

import pytest

from jaxcodec import atomic


def test_a_replaced_file_is_the_old_or_the_new_one(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with atomic.replacing(path) as part:
        part.write_text("old")
        assert not path.exists() and part.suffix == ".txt"
    with pytest.raises(OSError, match="disk full"), atomic.replacing(path) as part:  # noqa: PT012
        part.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert [item.name for item in path.parent.iterdir()] == ["file.txt"]
