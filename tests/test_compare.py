"""The comparison of recipes runs from its command line to its table."""

import json
import sys

import numpy as np
import pytest

from benchmarks import compare
from jaxcodec import audio
from tests import support


def test_a_variant_is_trained_measured_and_tabulated(tmp_path, monkeypatch, capsys):
    (tmp_path / "speech").mkdir()
    for index, clip in enumerate(support.speech_like(4, 16000)):
        audio.save(tmp_path / "speech" / f"{index}.wav", clip)
    monkeypatch.setattr(compare, "WARMUP_STEPS", 1)
    monkeypatch.setattr(compare, "TIMED_STEPS", 1)
    scored = lambda pairs, rate, measures: [{"pesq_wb": 1.5, "estoi": 0.5} for _ in pairs]  # noqa: E731
    monkeypatch.setattr(compare.evaluation, "score_pairs", scored)
    variant = f"small@configs/tiny.py:data.prepared_dir={tmp_path}/prepared,model.width=16,data.backend=numpy"
    command = ["compare.py", "--minutes", "0.0001", "--reports", "2", "--variants", variant]
    monkeypatch.setattr(
        sys, "argv", [*command, "--data_dir", f"{tmp_path}/speech", "--output", f"{tmp_path}/rows.json"]
    )
    compare.main()
    first, last = json.loads((tmp_path / "rows.json").read_text())
    assert (first["variant"], first["step"], last["step"]) == ("small", 1, 2)
    assert np.isfinite([last["snr"], last["segmental_snr"], last["ms_per_step"]]).all()
    assert last["pesq_wb"] == 1.5 and "pesq_wb" not in first
    assert capsys.readouterr().out.splitlines()[-1].startswith("| small | 0 |")


def test_a_variant_is_a_recipe_with_overrides():
    name, config = compare.parse_variant("x@configs/tiny.py:model.width=24,loss.error_weighting=band")
    assert (name, config.model.width, config.loss.error_weighting) == ("x", 24, "band")
    with pytest.raises(KeyError, match="wdth"):
        compare.parse_variant("x@configs/tiny.py:model.wdth=24")
