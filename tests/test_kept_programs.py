"""Programs that are kept: found again they are not traced, and nothing but the same program is found."""

import contextlib
import os

import flax.struct
import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import jaxcodec
from jaxcodec import programs
from jaxcodec.cli import kept_programs
from tests import support

traced = []


class Scale(flax.struct.PyTreeNode):
    """A factor, and a power that another program belongs to."""

    factor: float
    power: int = flax.struct.field(pytree_node=False)


def scaled(scale, values):
    """What is called; it notes when it is traced."""
    traced.append(values.shape)
    return {"result": scale.factor * values**scale.power}  # a dict, as some results are


@pytest.fixture
def folder(tmp_path):
    """Where programs are kept."""
    traced.clear()
    yield tmp_path / "programs"
    programs.run_by(None)


def call(folder, scale, size):
    """How often `scaled` was traced after a call in what might be a process of its own; its result is checked."""
    programs.run_by(folder and kept_programs.KeptPrograms(folder))
    programs.jitted(scaled).clear_cache()
    values = np.arange(size, dtype=np.float32)
    result = programs.call(scaled, scale, values)["result"]
    np.testing.assert_allclose(result, scale.factor * values**scale.power, rtol=1e-6)
    return len(traced)


def test_a_kept_program_is_not_traced_again_and_another_is(folder):
    assert [call(folder, Scale(2.0, 2), 5), call(folder, Scale(2.0, 2), 5), call(folder, Scale(3.0, 2), 5)] == [1, 1, 1]
    assert [call(folder, Scale(2.0, 3), 5), call(folder, Scale(2.0, 2), 6), call(folder, Scale(2, 2), 5)] == [2, 3, 4]
    assert len(list(folder.iterdir())) == 4


def test_without_a_folder_nothing_is_kept(folder):
    assert [call(None, Scale(2.0, 2), 5), call(None, Scale(2.0, 2), 5)] == [1, 2]
    assert not folder.exists()


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-9], lambda data: data[:50] + b"x" + data[51:]]
)
def test_a_damaged_program_is_made_anew(folder, damage):
    call(folder, Scale(2.0, 2), 5)
    (file,) = folder.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    jax.clear_caches()
    assert [call(folder, Scale(2.0, 2), 5), call(folder, Scale(2.0, 2), 5)] == [2, 2]


@pytest.fixture
def jax_cache(tmp_path):
    """JAX's own cache, with the program of `scaled` for a power of three and seven numbers in it."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path / "jax"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    jax.jit(scaled)(Scale(2.0, 3), np.arange(7, dtype=np.float32))
    assert list((tmp_path / "jax").iterdir())
    jax.clear_caches()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_a_program_that_jax_has_kept_is_compiled_anew_and_kept_whole(folder, jax_cache):
    assert [call(folder, Scale(2.0, 3), 7), call(folder, Scale(2.0, 3), 7)] == [2, 2]
    assert len(list(folder.iterdir())) == 1
    assert jax.config.jax_enable_compilation_cache


def test_a_program_that_does_not_run_is_not_kept(folder, jax_cache, monkeypatch):
    monkeypatch.setattr(kept_programs, "_without_jax_cache", contextlib.nullcontext)
    call(folder, Scale(2.0, 3), 7)
    assert not list(folder.glob("*.program"))
    run = kept_programs._run
    monkeypatch.setattr(kept_programs, "_run", lambda *_: None)  # nor is it run where it has been kept
    call(folder, Scale(2.0, 3), 7)
    assert list(folder.glob("*.program"))
    monkeypatch.setattr(kept_programs, "_run", run)
    before = len(traced)
    assert call(folder, Scale(2.0, 3), 7) > before


def test_the_longest_not_used_go_first(folder, monkeypatch):
    monkeypatch.setattr(kept_programs, "_MOST", 2)
    for size, age in ((5, 300), (6, 200), (5, 0), (7, 0)):
        before = set(folder.glob("*"))
        call(folder, Scale(2.0, 2), size)
        for file in set(folder.glob("*")) - before if age else ():
            os.utime(file, (file.stat().st_mtime - age,) * 2)
    jax.clear_caches()
    before = len(traced)
    assert [call(folder, Scale(2.0, 2), size) - before for size in (5, 7, 6)] == [0, 0, 1]


def test_a_program_of_somebody_else_is_not_run(folder, monkeypatch):
    call(folder, Scale(2.0, 2), 5)
    (file,) = folder.iterdir()
    kept = file.read_bytes()
    monkeypatch.setattr(kept_programs.os, "getuid", lambda: file.stat().st_uid + 1)
    assert [call(folder, Scale(2.0, 2), 5), call(folder, Scale(2.0, 2), 5)] == [2, 3]
    assert file.read_bytes() == kept


def test_a_folder_that_cannot_be_written_costs_nothing(folder):
    folder.write_text("a file")
    assert [call(folder, Scale(2.0, 2), 5), call(folder, Scale(2.0, 2), 5)] == [1, 2]


def test_what_programs_depend_on_names_them(folder, monkeypatch):
    call(folder, Scale(2.0, 2), 5)
    found = kept_programs._surroundings()
    monkeypatch.setattr(kept_programs, "_surroundings", lambda: (*found, "another JAX"))
    assert [call(folder, Scale(2.0, 2), 5), call(folder, Scale(2.0, 2), 5)] == [2, 2]


def test_functions_that_no_name_tells_apart_are_not_kept(folder):
    programs.run_by(kept_programs.KeptPrograms(folder))
    for offset in (1, 2):
        assert programs.call(lambda x, offset=offset: x + offset, 1.0) == 1 + offset
    assert not folder.exists()


def test_a_codec_has_the_same_codes_and_sound_by_kept_programs(folder, monkeypatch):
    codec = support.trained_codec(support.small_config())
    (audio,) = support.speech_like(1, 3000)
    codes = jaxcodec.encode(codec, audio)
    decoded = jaxcodec.decode(codec, codes, len(audio))

    def check():
        programs.run_by(kept_programs.KeptPrograms(folder))
        assert np.array_equal(jaxcodec.encode(codec, audio), codes)
        assert np.array_equal(jaxcodec.decode(codec, codes, len(audio)), decoded)

    check()
    assert len(list(folder.iterdir())) >= 2
    monkeypatch.delattr(jax, "jit")  # by which everything else is traced
    check()
