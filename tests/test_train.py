"""The driver: train.py end to end on made speech."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import flax.traverse_util
import jax
import numpy as np
import pytest
from absl import flags

import jaxcodec
import train as driver
from configs import tiny
from jaxcodec import audio, codec, data, pcm
from jaxcodec.inference import pretrained
from jaxcodec.quantizers import layout
from jaxcodec.training import checkpoint, run, step
from tests import support, test_adversarial, test_scalar


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """Runs of one shape compile once."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder of short made recordings."""
    folder, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    time = np.arange(16000) / 16000
    for index in range(6):
        tone = 0.2 * np.sin(2 * np.pi * (150 + 60 * index) * time) * (0.5 + 0.5 * np.sin(6 * time))
        audio.save(folder / f"{index}.wav", (tone + 0.01 * rng.standard_normal(16000)).astype(np.float32), 16000)
    return folder


def make_config(recordings, checkpoint_dir):
    """Two epochs of two steps on the made speech."""
    config = tiny.get_config()
    config.data.data_dir = str(recordings)
    config.data.prepared_dir = str(recordings.parent / "prepared")
    config.data.backend = "numpy"
    config.checkpoint_dir = str(checkpoint_dir)
    config.batch_size, config.eval_batch_size = 8, 8
    config.steps_per_epoch, config.num_epochs, config.num_examples = 2, 2, 1
    return config


@pytest.fixture
def config(recordings, tmp_path):
    """A recipe with a place of its own for snapshots."""
    return make_config(recordings, tmp_path)


@pytest.fixture(scope="module")
def trained(recordings, tmp_path_factory):
    """The config of a run of three epochs whose second was the best, and its last summary."""
    config, snrs = make_config(recordings, tmp_path_factory.mktemp("trained")), iter([3.0, 5.0, 1.0])
    config.num_epochs = 3
    save = checkpoint.Checkpoints.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", lambda *args: save(*args[:-1], next(snrs)))
        return config, run.train(config)


def test_a_run_with_a_prior_counts_its_real_bytes_and_keeps_the_least_loss(recordings, tmp_path, monkeypatch, capsys):
    config, made = test_scalar.small_config().copy_and_resolve_references().unlock(), make_config(recordings, tmp_path)
    config.update({"data": made.data, "checkpoint_dir": str(tmp_path), "num_examples": 2})
    config.batch_size, config.eval_batch_size, config.steps_per_epoch, config.num_epochs = 8, 8, 2, 1
    scores = []
    monkeypatch.setattr(checkpoint.Checkpoints, "save", lambda self, state, progress, score: scores.append(score))
    summary = run.train(config)
    assert scores == [-summary["loss"]] and summary["loss"] > 0
    assert 0.98 < summary["kbps_coded"] / summary["kbps_entropy"] < 1.02
    assert f"examples coded in {summary['kbps_coded']:.3f} kbit/s" in capsys.readouterr().out


def command(*arguments):
    """Runs train.py as from the shell; returns its exit code and what it told the user."""
    finished = subprocess.run(
        [sys.executable, "train.py", *arguments],
        cwd=pathlib.Path(driver.__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return finished.returncode, finished.stderr.strip()


def test_a_run_leaves_a_model_that_loads_with_its_output_scale_and_config(trained):
    config, summary = trained
    params, codebooks, saved = checkpoint.load_model(f"{config.checkpoint_dir}/tiny/checkpoints")
    assert params["decoder"]["output_scale"].shape == ()
    model = config.model
    assert codebooks.centroids.shape == (model.rvq.num_codebooks, model.rvq.codebook_size, model.latent_dim)
    assert json.loads(config.to_json_best_effort()) == json.loads(saved.to_json_best_effort())
    assert np.isfinite(summary["snr"])


def test_the_best_and_the_two_latest_snapshots_are_kept(trained):
    directory = pathlib.Path(trained[0].checkpoint_dir, "tiny", "checkpoints")
    assert sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit()) == [4, 6]


def test_tensorboard_events_hold_scalars_pictures_and_sounds(trained):
    (events,) = pathlib.Path(trained[0].checkpoint_dir, "tiny", "tensorboard").iterdir()
    content = events.read_bytes()
    for tag in (b"validation/snr", b"codebooks/code_counts", b"example_0/spectrograms", b"example_0/decoded"):
        assert tag in content


def test_another_architecture_in_the_same_directory_is_refused_in_one_line(trained):
    config = trained[0].copy_and_resolve_references()
    config.model.width += 16
    with pytest.raises(ValueError, match=r"model.width = 32, this config says 48: give another --experiment_name"):
        run.train(config)


@pytest.mark.parametrize(("share", "average_decay"), [(0.0, 0.9), (0.3, 0.0)])
def test_an_interrupted_run_resumes_to_the_same_weights_as_an_uninterrupted_one(
    config, share, average_decay, monkeypatch
):
    config.adversarial.update(test_adversarial.SIZES | {"share": share})
    config.optimizer.average_decay = average_decay  # where there is one, it is what loads
    config.experiment_name = "whole"
    run.train(config)

    config.experiment_name = "halves"
    train_epoch = run.Run.train_epoch

    def stop_in_second_epoch(self, state, progress, batches, epoch, checkpoints):
        if epoch == 1:
            raise KeyboardInterrupt
        return train_epoch(self, state, progress, batches, epoch, checkpoints)

    with monkeypatch.context() as patch:
        patch.setattr(run.Run, "train_epoch", stop_in_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            run.train(config)
    run.train(config)

    directories = (f"{config.checkpoint_dir}/{name}/checkpoints" for name in ("whole", "halves"))
    whole, halves = (checkpoint.load_model(directory, best=False)[:2] for directory in directories)
    jax.tree.map(np.testing.assert_array_equal, whole, halves)


def test_a_run_starts_from_the_weights_of_another_of_the_same_model(trained, config):
    config.init_from = f"{trained[0].checkpoint_dir}/tiny"
    splits = [data.open_split(config.data, split) for split in ("train", "validation")]

    def start():
        one = run.Run(config, codec.from_config(config.model, config.fixes), *splits)
        return one.start(one.init_state())

    state, (params, codebooks, _) = start(), checkpoint.load_model(f"{config.init_from}/checkpoints")
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    np.testing.assert_array_equal(state.quantizer.centroids, codebooks.centroids)
    # The averages stand where the centroids are: an update without frames moves none.
    np.testing.assert_array_equal(state.quantizer.sums / state.quantizer.counts[..., None], codebooks.centroids)
    assert int(state.step) == 0 and not any(np.any(x) for x in jax.tree.leaves(state.opt_state))
    config.model.rvq.num_codebooks = 3
    np.testing.assert_array_equal(start().quantizer.centroids, codebooks.centroids[:3])
    config.model.rvq.num_codebooks = 5
    with pytest.raises(ValueError, match=r"has model.rvq.num_codebooks = 4, this config says 5"):
        start()
    config.model.rvq.num_codebooks = 4
    config.model.width += 16
    with pytest.raises(ValueError, match=r"has model.width = 32, this config says 48"):
        start()


def test_a_model_that_was_not_told_its_rate_goes_on_as_one_that_is_told(config):
    older = support.small_config("gain_shape", model__causal=True, model__latent_dim=24 + layout.NUM_BANDS)
    with older.unlocked():
        del older.model.gain_shape.told_rate
    before = support.trained_codec(older)
    path = f"{config.checkpoint_dir}/older.safetensors"
    pretrained.save(before, path)
    newer = support.small_config("gain_shape", model__causal=True, init_from=path)
    newer.data.update(config.data)
    splits = [data.open_split(newer.data, split) for split in ("train", "validation")]
    one = run.Run(newer, codec.from_config(newer.model, newer.fixes), *splits)
    state = one.start(one.init_state())
    after = pretrained.make(state.params, state.quantizer, newer)
    codes = before.encode(support.speech_like(1, 2000)[0])
    np.testing.assert_array_equal(after.encode(support.speech_like(1, 2000)[0]), codes)
    for count in (1, 2, 4):
        np.testing.assert_allclose(after.decode(codes[:count]), before.decode(codes[:count]), atol=1e-6)
        np.testing.assert_allclose(after.dequantize(codes[:count])[:, -1], np.log2(count), atol=1e-6)
    params = flax.traverse_util.flatten_dict(state.params)
    listening = np.array(params["decoder", "network", "input", "kernel"])
    listening[-1] = 1.0
    params["decoder", "network", "input", "kernel"] = listening
    told = after.replace(params=flax.traverse_util.unflatten_dict(params))
    assert np.abs(told.decode(codes) - after.decode(codes)).max() > 1e-3


def test_a_run_of_before_a_switch_resumes_where_it_is_off():
    config = support.small_config("gain_shape", model__causal=True, model__gain_shape__told_rate=False)
    current = json.loads(config.to_json_best_effort())
    saved = json.loads(config.to_json_best_effort())
    del saved["model"]["gain_shape"]["told_rate"]
    checkpoint.check_architecture(saved, current, "runs/older")
    current["model"]["gain_shape"]["told_rate"] = True
    with pytest.raises(ValueError, match=r"has model.gain_shape.told_rate = None, this config says True"):
        checkpoint.check_architecture(saved, current, "runs/older")


def test_what_makes_a_snapshot_the_best_follows_what_is_trained_for(config):
    splits = [data.open_split(config.data, split) for split in ("train", "validation")]
    ranks = []
    for share, loudness in ((0.0, 0.0), (0.0, 0.3), (0.3, 0.3)):
        config.adversarial.share, config.loss.loudness_weight = share, loudness
        one = run.Run(config, codec.from_config(config.model, config.fixes), *splits)
        ranks.append(one.score({"snr": 3.0, "loss": 1.0}, 40))
    assert ranks == [3.0, -1.0, 40.0]


@pytest.fixture(scope="module")
def split_recordings(recordings):
    """The recordings as training, with validation clips of lengths that make two batches."""
    folder = recordings.parent / "split"
    shutil.copytree(recordings, folder / "train")
    (folder / "validation").mkdir()
    for number, seconds in enumerate((0.4, 0.7, 1.5)):
        clip = support.speech_like(1, round(16000 * seconds), seed=number)[0] * (1 + number) / 3
        audio.save(folder / "validation" / f"{number}.wav", clip, 16000)
    return folder


def frozen_run(split_recordings, folder, seed):
    """The config, last summary and loaded codec of a run whose weights stay, with an average twice as loud as they are."""
    config, update = make_config(split_recordings, folder), step.train_step
    config.seed, config.num_epochs, config.steps_per_epoch = seed, 1, 1
    config.optimizer.learning_rate, config.optimizer.average_decay = 0.0, 0.9

    def louder_average(*args, **options):
        state, logs = update(*args, **options)
        decoder = state.params["decoder"]
        louder = decoder | {"output_scale": 2 * decoder["output_scale"]}
        return state.replace(average=state.params | {"decoder": louder}), logs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "train_step", louder_average)
        summary = run.train(config)
    return config, summary, jaxcodec.load(folder / config.experiment_name)


@pytest.fixture(scope="module")
def frozen(split_recordings, tmp_path_factory):
    """`frozen_run` with the seeds 0 and 1."""
    return [frozen_run(split_recordings, tmp_path_factory.mktemp("frozen"), seed) for seed in (0, 1)]


def test_a_run_is_judged_by_all_clips_and_leaves_the_average_that_was_judged(frozen):
    config, summary, codec = frozen[0]
    assert codec.params["decoder"]["output_scale"] == 2 * config.model.output_scale
    snrs = []
    for clip in data.open_split(config.data, "validation"):
        speech = pcm.to_float(clip["audio"])
        decoded = jaxcodec.decode(codec, jaxcodec.encode(codec, speech), len(speech))
        snrs.append(10 * np.log10(np.sum(speech**2) / np.sum((speech - decoded) ** 2)))
    assert len(snrs) == summary["clips"] == 3 and np.ptp(snrs) > 0.01
    np.testing.assert_allclose(summary["snr"], np.mean(snrs), rtol=1e-3, atol=1e-3)


def test_weights_follow_the_seed(frozen):
    first, second = (flax.traverse_util.flatten_dict(codec.params["encoder"], sep="/") for *_, codec in frozen)
    kernels = [name for name in first if name.endswith("kernel")]
    assert kernels
    for name in kernels:
        assert np.mean(first[name] != second[name]) > 0.9, name


@pytest.mark.parametrize(("loudness_weight", "best_is_last"), [(0.0, False), (1e-6, True)])
def test_the_best_snapshot_is_that_of_the_best_snr_or_of_the_least_loss_where_loudness_is_a_term(
    config, loudness_weight, best_is_last
):
    """A run that is paid for its error: with every epoch loss and SNR fall."""
    config.loss.update(mse_weight=-1.0, mse_bound=1e9, clip_bound=1e9, loudness_weight=loudness_weight)
    config.loss.update(perceptual_weight=0.0, commitment_weight=0.0)
    config.optimizer.update(learning_rate=0.03, warmup_steps=0, schedule="constant")
    summary = run.train(config)
    assert summary["snr"] < 0
    directory = f"{config.checkpoint_dir}/{config.experiment_name}/checkpoints"
    best, last = (checkpoint.load_model(directory, best=best)[0]["decoder"]["output_scale"] for best in (True, False))
    assert (best == last) == best_is_last


def test_kmeans_starts_the_codebooks_closer_to_the_data_than_noise(config):
    splits = [data.open_split(config.data, split) for split in ("train", "validation")]

    def quantization_error(init):
        config.quantizer.init = init
        one = run.Run(config, codec.from_config(config.model, config.fixes), *splits)
        state = one.start_quantizer(one.init_state())
        batches = one.train_batches(0, num_devices=1)
        batch = {name: value[0] for name, value in next(batches).items()}
        batches.close()
        apply = jax.jit(one.model.apply)
        output = apply(one.model.collections(state.params, state.quantizer), batch["audio"], batch["length"])
        return float(np.sum((output.latents - output.quantized.trace.stages.sum(0)) ** 2))

    assert quantization_error("kmeans") < 0.1 * quantization_error("normal")


def test_a_diverging_run_ends_naming_the_step(config):
    config.optimizer.learning_rate, config.optimizer.clip_norm = 1e30, 1e30
    config.optimizer.warmup_steps, config.steps_per_epoch, config.optimizer.max_skipped = 0, 6, 2
    with pytest.raises(ValueError, match=r"loss of step \d is not finite.* 3 times in a row: lower optimizer.lea"):
        run.train(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.model.widht=3"], 'Did you mean "width"'),
        (["--config.modle.width=3"], "'modle' Did you mean \"model\""),
        (["--config=configs/nowhere.py"], "configs/nowhere.py"),
        (["--batch_size=3"], "batch_size is 3, expected a multiple of the 8 devices"),
        (
            ["--batch_size=16", "--config.gradient_accumulation_steps=4"],
            "gradient_accumulation_steps is 4, expected to divide a device's 2 clips",
        ),
        (["--data_dir=/nowhere/at/all"], "/nowhere/at/all"),
        (["--checkpoint_dir=/proc/nowhere"], "Cannot write checkpoints to /proc/nowhere"),
        (["--config.model.architecture=lpc"], 'model.architecture is "lpc"'),
        (["--config.optimizer.schedule=steps"], 'optimizer.schedule is "steps"'),
        (["--config.quantizer.init=zeros"], 'quantizer.init is "zeros"'),
        (["--config.model.sample_rate=8000"], "model.sample_rate is 8000, recordings are read at 16000 Hz"),
    ],
)
def test_what_a_user_can_mend_ends_in_one_line_and_exit_code_1(arguments, message, recordings, tmp_path):
    start = ["--config=configs/tiny.py", f"--data_dir={recordings}", f"--checkpoint_dir={tmp_path}"]
    code, told = command(*start, f"--config.data.prepared_dir={recordings.parent / 'prepared'}", *arguments)
    assert code == 1, told
    assert message in told.splitlines()[-1]
    assert "Traceback" not in told


def test_the_original_names_set_the_config(tmp_path):
    flags.FLAGS.unparse_flags()
    driver.parse_flags(
        ["train.py", "--config=configs/tiny.py", "--learning_rate=0.5", "--num_epochs=7", "--batch_size=16"]
        + ["--experiment_name=mine", f"--checkpoint_dir={tmp_path}", "--data_dir=speech"]
    )
    config = driver.resolve_config()
    assert (config.optimizer.learning_rate, config.num_epochs, config.batch_size) == (0.5, 7, 16)
    assert (config.experiment_name, config.checkpoint_dir, config.data.data_dir) == ("mine", str(tmp_path), "speech")


def test_the_snapshots_of_a_run_do_in_the_readmes_example(trained, recordings, tmp_path, monkeypatch):
    readme = pathlib.Path(driver.__file__).with_name("README.md").read_text()
    (block,) = re.findall(r"<!-- ci: use -->\n```python\n(.*?)```", readme, re.DOTALL)
    assert 'jaxcodec.load("checkpoints/telugu")' in block
    block = block.replace("jaxcodec.load()", 'jaxcodec.load("checkpoints/telugu")')
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "telugu").symlink_to(pathlib.Path(trained[0].checkpoint_dir, "tiny"))
    audio.save(tmp_path / "speech.flac", audio.load(recordings / "0.wav"))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block, names)
    assert names["codes"].shape == (trained[0].model.rvq.num_codebooks, 101)
    assert audio.load("decoded.wav").shape == names["speech"].shape
    training_page = pathlib.Path(driver.__file__).parent.joinpath("docs/training.md").read_text()
    (block,) = re.findall(r"<!-- ci: load -->\n```python\n(.*?)```", training_page, re.DOTALL)
    exec(block, names)
    assert names["config"].experiment_name == "tiny"


def test_a_missing_recipe_ends_in_one_line_without_overrides_too():
    for arguments, message in (([], "No recipe given"), (["--config=configs/nowhere.py"], "configs/nowhere.py")):
        code, told = command(*arguments)
        assert code == 1
        assert message in told.splitlines()[-1]
        assert "Traceback" not in told
