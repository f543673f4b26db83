"""The epoch report and its diagnosis."""

import json
import time
from unittest import mock

import numpy as np
import pytest
from absl import flags  # noqa: F401, ml_collections needs it first
from tensorboardX import event_file_writer

from configs import tiny
from jaxcodec.training import summaries
from tests import crash_train


def make_sums(**changes):
    """Sums of a pass over two clips with ten frames, two codebooks of four codes and two latent dimensions."""
    sums = {f"snr_{n}": 2 * value for n, value in ((1, 3.0), (2, 5.0))}
    sums |= {"snr_unquantized": 12.0, "segmental_snr": 8.0, "si_sdr": 6.0, "range_ratio": 1.8, "rms_ratio": 1.6}
    sums |= {"input_min": -1.0, "input_max": 1.0, "output_min": -0.9, "output_max": 0.9}
    sums |= {"mse": 0.6, "perceptual": 2.0, "commitment": 0.2, "loss": 0.7, "clips": 2, "frames": 10}
    sums |= {"latent_sum": np.zeros(2), "latent_outer": 10 * np.eye(2), "usage": np.array([[5, 5, 0, 0], [4, 3, 2, 1]])}
    return sums | changes


TRAIN = {"loss": 0.35, "mse": 0.3, "perceptual": 1.0, "commitment": 0.1, "output_scale": 2.4}
SHARES = {"mse": 0.8, "perceptual": 0.15, "commitment": 0.05}


def test_means_are_over_clips_and_usage_over_codes():
    summary = summaries.summarize_pass(make_sums(), best_rate=2)
    assert (summary["snr_1"], summary["snr"], summary["range_ratio"]) == (3.0, 5.0, 0.9)
    np.testing.assert_allclose(summary["usage"], [0.5, 1.0])
    np.testing.assert_allclose(summary["perplexity"][0], 2.0, rtol=1e-6)
    np.testing.assert_allclose(summary["effective_dimension"], 2.0, rtol=1e-6)


def test_the_report_shows_what_the_run_is_judged_by():
    summary = summaries.summarize_pass(make_sums(), 2)
    report = summaries.format_report(3, 100, 800, 3725.0, summary, TRAIN, SHARES, "codebooks")
    for shown in (
        "epoch 3 of 100",
        "1:02:05",
        "3.00",
        "5.00",
        "6.00",
        "-0.500 +0.500",
        "0.900",
        "2.4000",
        "80.0 %",
        "50 to 100 %",
    ):
        assert shown in report
    assert "negative" not in report


def test_rates_stand_in_their_order():
    sums = {name: value for name, value in make_sums().items() if name != "snr_2"} | {"snr_16": 24.0, "snr_8": 20.0}
    summary = summaries.summarize_pass(dict(sorted(sums.items())), 16)
    line = summaries.format_report(0, 1, 1, 1.0, summary, TRAIN, SHARES, "codebooks").splitlines()[1]
    assert line.split() == ["codebooks", "1", "8", "16", "unquantized"]


def test_with_a_prior_the_report_says_bits_what_8_kbit_per_second_have_and_what_bytes_came_to():
    rated = make_sums(seconds=2.0, bits_1=2 * 4000.0, bits_2=2 * 12000.0)
    summary = summaries.summarize_pass(rated, 2) | {"kbps_coded": 5.01, "kbps_entropy": 5.0}
    assert (summary["kbps_1"], summary["kbps_2"], summary["snr_8kbps"]) == (4.0, 12.0, 4.0)
    report = summaries.format_report(0, 1, 1, 1.0, summary, TRAIN, SHARES, "quality").splitlines()
    assert report[2].split() == ["kbit/s", "4.00", "12.00"]
    assert report[4:6] == [
        "  SNR at 8 kbit/s 4.00 dB",
        "  examples coded in 5.010 kbit/s, +0.20 % from their entropy of 5.000 kbit/s",
    ]
    above = summaries.summarize_pass(make_sums(seconds=2.0, bits_1=2 * 9000.0, bits_2=2 * 12000.0), 2)
    assert "snr_8kbps" not in above  # nothing is said beyond the rates that were measured


@pytest.mark.parametrize(
    ("changes", "scale", "finding"),
    [
        ({"range_ratio": 0.2}, 2.5, "too quiet, 0.10 of the input's range"),
        ({"range_ratio": 8.0}, 2.5, "too loud, 4.00 times"),
        ({"mse": 3.0}, 2.5, "the MSE is 1.50, above 1"),
        ({}, None, "output_scale is not a parameter"),
        ({}, 0.01, "output_scale has shrunk to 0.010"),
        ({"usage": np.array([[10] + [0] * 39, [1] * 10 + [0] * 30])}, 2.5, "codebook 1 collapsed"),
        ({"snr_unquantized": -1.0}, 2.5, "negative without quantization too"),
        ({"loss": np.nan}, 2.5, "the loss is not finite"),
    ],
)
def test_a_negative_snr_is_diagnosed_by_its_cause_alone(changes, scale, finding):
    usage = {"usage": np.array([[5, 5, 0, 0], [4, 3, 2, 1]])}
    negative = summaries.summarize_pass(make_sums(snr_2=-2.0, **(usage | changes)), 2)
    findings = summaries.diagnose(negative, scale)
    assert len(findings) == 1
    assert finding in findings[0]
    report = summaries.format_report(0, 1, 1, 1.0, negative, TRAIN | {"output_scale": scale}, SHARES, "codebooks")
    assert finding in report


def test_a_positive_snr_is_no_patient():
    assert summaries.diagnose(summaries.summarize_pass(make_sums(range_ratio=0.1), 2), None) == []


def test_weights_and_biases_asked_for_but_missing_is_said_in_one_line(tmp_path, monkeypatch):
    config = tiny.get_config()
    config.wandb_project = "codec"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install wandb"):
        summaries.SummaryWriter(str(tmp_path), config)


class Recorder:
    """What a SummaryWriter was told, in place of tensorboardX's."""

    file_writer = mock.MagicMock()

    def __init__(self, *_, **__):
        self.told = []

    def __getattr__(self, name):
        return lambda tag, *_, **__: self.told.append((name, tag))


def test_every_epoch_shows_pictures_and_sounds_and_the_reference_sounds_once(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorboardX.SummaryWriter", Recorder)
    writer = summaries.SummaryWriter(str(tmp_path), tiny.get_config())
    clip = np.linspace(-0.1, 0.1, 800, dtype=np.float32)
    for step in (200, 400):
        writer.epoch(step, summaries.summarize_pass(make_sums(), 2), TRAIN, SHARES)
        writer.pair(step, "example_0", clip, 0.9 * clip, 16000)
    told = writer._events.told
    for once in (("add_audio", "example_0/reference"), ("add_text", "config")):
        assert told.count(once) == 1
    for each in (
        ("add_audio", "example_0/decoded"),
        ("add_image", "example_0/spectrograms"),
        ("add_image", "codebooks/code_counts"),
        ("add_scalar", "codebooks/usage_2"),
        ("add_scalar", "train/output_scale"),
    ):
        assert told.count(each) == 2


def test_what_is_left_of_a_run_follows_the_last_steps():
    pace = summaries.Pace(total_steps=1000, seconds_per_step=32.0)
    assert pace.left(0) == "0:00:00 left"
    pace.add(10, 20.0)  # compiles
    assert pace.left(10) == "0:33:00 left"
    for _ in range(8):
        pace.add(10, 5.0)
    assert pace.left(90) == "0:12:08 left"  # 40 s for the first 50 steps


def test_points_within_an_epoch_lie_at_the_same_steps_wherever_a_run_was_stopped():
    pace, shown, window = summaries.Pace(total_steps=1000, seconds_per_step=32.0), {}, {}
    pace.show = lambda number, values: shown.update({number: values})
    for number in range(120):
        if number == 77:  # a snapshot, and another process
            window = json.loads(json.dumps(window))
        window = summaries.extended(window, number, loss=float(number), seconds=0.5)
        pace.point(number + 1, window)
    assert list(shown) == [50, 100]
    assert shown[50] == {"loss": 24.5, "steps_per_second": 2.0, "audio_seconds_per_second": 64.0}
    assert shown[100]["loss"] == 74.5


def test_a_skipped_step_begins_or_ends_a_window_and_is_no_part_of_its_means():
    pace, shown, window = summaries.Pace(total_steps=1000, seconds_per_step=32.0), {}, {}
    pace.show = lambda number, values: shown.update({number: values})
    for number in range(150):
        window = summaries.extended(window, number, None if number in (49, 50) else float(number), seconds=0.5)
        pace.point(number + 1, window)
    assert list(shown) == [50, 100, 150]
    assert (shown[50]["loss"], shown[100]["loss"]) == (24.0, 75.0)


def test_what_is_flushed_is_on_disk_before_the_writer_is_closed(tmp_path, monkeypatch):
    slow = event_file_writer.EventsWriter.write_event
    monkeypatch.setattr(event_file_writer.EventsWriter, "write_event", lambda *args: (time.sleep(0.02), slow(*args)))
    writer = summaries.SummaryWriter(str(tmp_path / "run" / "tensorboard"), tiny.get_config())
    for number in range(30):
        writer.steps(number, {"loss": 1.0})
    writer.flush()
    assert len(crash_train.points(tmp_path, "run")) == 30
    writer.close()
