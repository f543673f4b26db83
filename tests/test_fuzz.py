"""A short run of `fuzz_models`; `python tests/fuzz_bitstream.py --count N --seed S` is a long one."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxcodec.bitstream import entropy
from jaxcodec.inference import pretrained
from tests import fuzz_models


@pytest.mark.parametrize(
    ("kind", "count"), [("model", 80), ("tokens.jxc", 150), ("files.jxc", 60), ("fast.jxc", 60), ("shard", 200)]
)
def test_seeded_mutations_are_refused_or_harmless(kind, count):
    counts = fuzz_models.run(kind, count, seed=1)
    refused = sum(number for key, number in counts.items() if key[2:] == ("refused",))
    assert refused > count / 2  # the mutations do change files


@pytest.mark.parametrize(
    ("kind", "module", "name", "check"),
    [
        ("model", pretrained, "_checksum", lambda header, tensors: None),
        ("shard", entropy, "digest", lambda *_: bytes(32)),
    ],
)
def test_the_fuzzer_notices_a_reader_that_skips_its_checks(kind, module, name, check, monkeypatch):
    monkeypatch.setattr(module, name, check)
    monkeypatch.setattr("zipfile.ZipExtFile._update_crc", lambda *_: None)
    with pytest.raises(AssertionError, match="damage went unnoticed"):
        fuzz_models.run(kind, 300, seed=1)


def test_the_command_runs_as_documented():
    command = [sys.executable, "tests/fuzz_bitstream.py", "--count", "20", "--seed", "5", "--kind", "container"]
    result = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("container, 20 cases of seed 5\n")
