"""The page to listen on, without a browser: what is in it, that it needs nothing else, and where it comes from."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
import soundfile
from tensorboardX import SummaryWriter

from jaxcodec import alignment, audio, cli, evaluate, opus, report, webpage
from tests import support

HOSTILE = "<img src=x onerror=alert(1)>/\"&'</script><b>తెలుగు\u2028"


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Only the quick measures, which mean something for noise too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "SHOWN", ("snr", "segmental_snr"))
        patch.setattr(report, "MEASURED", ("snr", "segmental_snr"))
        yield


@pytest.fixture(scope="module")
def clips():
    """Two clips of different lengths, one of an awful name."""
    first, second = support.speech_like(2, 8000)
    return [report.Clip("voice/first.wav", first), report.Clip(HOSTILE, second[:6000])]


@pytest.fixture(scope="module")
def rendered(codec, clips):
    """The clips through the tiny codec and Opus."""
    return report.render(codec, clips, [1, 4])


def compose(codec, clips, rendered, **more):
    page = dict(title="A title", model="the model", command="jaxcodec report out", sources="here") | more
    return webpage.compose(webpage.Page(**page), codec, clips, rendered)


@pytest.fixture(scope="module")
def page(codec, clips, rendered):
    """The page of these clips."""
    return compose(codec, clips, rendered)


class Elements(html.parser.HTMLParser):
    """Every start tag with its attributes, and the text in script elements of data by their id."""

    def __init__(self, page):
        super().__init__()
        self.found, self.data, self._id = [], {}, None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._id = dict(attrs).get("id") if tag == "script" else None

    def handle_data(self, data):
        if self._id:
            self.data[self._id] = self.data.get(self._id, "") + data


def test_the_page_loads_nothing_from_anywhere(page):
    for tag, attributes in Elements(page).found:
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:,")), (tag, attributes)
    assert not re.search(r"url\(|@import|https?://|fetch\(|import\(|XMLHttpRequest|WebSocket|sendBeacon", page)
    assert "default-src 'none'" in page


def test_the_policy_lets_the_pages_own_script_and_style_run_and_no_other(page):
    for kind in ("style", "script"):
        (element,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        assert f"{kind}-src '{webpage._content_hash(element)}'" in page
    assert not [
        attributes for _, attributes in Elements(page).found if any(name.startswith("on") for name in attributes)
    ]
    assert not [attributes for _, attributes in Elements(page).found if "style" in attributes]


def test_every_version_of_every_clip_is_carried_sample_for_sample(page, clips, rendered):
    data = Elements(page).data
    assert json.loads(data["facts"])["clips"] == [clip.name for clip in clips]
    for index, clip in enumerate(clips):
        encoded = json.loads(data[f"sounds-{index}"])
        assert len(encoded) == len(rendered.versions)
        for text, version in zip(encoded, rendered.versions, strict=True):
            samples, rate = soundfile.read(io.BytesIO(base64.b64decode(text)), dtype="int16")
            np.testing.assert_array_equal(samples, audio.to_int16(version.audio[index]))
            assert (rate, len(samples)) == (16000, len(clip.audio))


def test_names_cannot_become_markup(codec, clips, rendered):
    titled = compose(
        codec, clips, rendered, title="</title><script>x", notice="<b>&", command="$title '<i>'", sources="<u>"
    )
    tags = [tag for tag, _ in Elements(titled).found]
    assert not {"img", "b", "i", "u"} & set(tags)
    assert tags.count("script") == 2 + len(clips)
    assert "&lt;/title&gt;&lt;script&gt;x" in titled and "$title &#x27;&lt;i&gt;" in titled
    assert json.loads(Elements(titled).data["facts"])["clips"][1] == HOSTILE


def test_figures_are_those_of_the_bytes_and_of_score(page, clips, rendered):
    version = rendered.versions[2]
    expected = evaluate.score(clips[0].audio, version.audio[0], 16000, ["snr"])["snr"]
    assert version.label == "jaxcodec \N{MULTIPLICATION SIGN} 4"
    row = next(part for part in page.split("<tr>") if version.label in part)
    rate = 8e-3 * version.num_bytes[0] / 0.5
    assert [float(cell) for cell in re.findall(r"<td>([-\d.]+)", row)[:2]] == pytest.approx([rate, expected], abs=0.05)


def test_the_page_says_what_it_is_made_of(page, codec):
    from jaxcodec import pretrained

    for fact in (pretrained.fingerprint(codec).hex(), "the model", "jaxcodec report out", "here: 2", "libopus", "UTC"):
        assert fact in page
    assert 'id="training"' not in page


def test_opus_is_decoded_in_place_at_the_rate_its_file_has():
    clip = support.speech_like(1, 16000)[0]
    coded = [opus.round_trip(clip, 16000, kbps) for kbps in (8, 64)]
    for result, kbps in zip(coded, (8, 64), strict=True):
        assert result.decoded.shape == clip.shape
        assert result.version.startswith("libopus")
        assert result.payload_bytes < result.num_bytes
        assert 8e-3 * result.payload_bytes == pytest.approx(kbps, rel=0.5)
    aligned, lag = alignment.align([clip], [coded[1].decoded])
    assert abs(lag) <= 1
    assert evaluate.score(clip, aligned[0], 16000, ["snr"])["snr"] > 10


def test_opus_out_of_range_is_refused_and_its_lack_is_named(codec, clips, monkeypatch):
    with pytest.raises(ValueError, match="expected 6 to 256"):
        opus.round_trip(clips[0].audio, 16000, 5)
    monkeypatch.setattr(soundfile, "available_subtypes", lambda _: {})
    without = report.render(codec, clips, [1])
    assert [version.system for version in without.versions] == ["original", "jaxcodec"]
    assert "Opus: this libsndfile" in compose(codec, clips, without)


def test_a_measure_without_its_package_is_named(codec, clips, monkeypatch):
    monkeypatch.setattr(report, "MEASURED", ("snr", "visqol"))
    here = {key: measure for key, measure in evaluate.MEASURES.items() if key != "visqol"}
    monkeypatch.setattr(evaluate, "installed", lambda: here)
    page = compose(codec, clips, report.render(codec, clips, [1]))
    assert "ViSQOL: not installed" in page


def test_clips_are_spread_over_the_speakers_and_keep_their_order():
    names = [f"{speaker}/{i:02}" for speaker, count in (("a", 20), ("b", 2), ("c", 9)) for i in range(count)]
    chosen = report.spread(names, 12)
    assert [sum(name.startswith(speaker) for name in chosen) for speaker in "abc"] == [5, 2, 5]
    assert chosen == sorted(chosen) and report.spread(["one"]) == ["one"]


def test_the_bundled_clips_are_a_dozen_of_every_speaker_with_their_notice():
    clips, notice = report.bundled_clips()
    assert len(clips) == 12
    assert {report.speaker(clip.name) for clip in clips} == {"festvox-ru", "piper-joe", "espeak-te-f5"}
    assert "Copyright: 2005 Nickolay V. Shmyrev" in notice


def results(**changes):
    """As benchmarks/rate_distortion.py writes them, of two systems."""
    points = [
        dict(system=system, setting=str(n), clips=17, seconds=75.0, kbps=n * 1.1, snr=snr, segmental_snr=snr - 1)
        | dict(intervals={"snr": [snr - 1, snr + 1], "segmental_snr": None}, values={"snr": 17})
        for system, settings in (("jaxcodec", ((1, 4.0), (8, 11.0))), ("AMR<WB>", ((6, 7.0), (12, 9.5))))
        for n, snr in settings
    ]
    bound = [dict(kbps=rate, snr=6.0 + rate) for rate in (0.5, 2.0, 8.0, 32.0)]
    return (
        dict(date="2026-01-01", command="python <x>", model="0123", clips=[{}] * 17, points=points, bound=bound)
        | changes
    )


def test_results_give_the_table_and_the_plots_with_their_bound(codec, clips, rendered, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results(missing={"LC3": "install liblc3-tools"})))
    page = compose(codec, clips, rendered, results=report.read_results(path))
    for shown in (
        "AMR&lt;WB&gt;, 12",
        "10.00 to 12.00",
        "Means over 17 clips",
        "2026-01-01",
        "LC3: install liblc3-tools",
    ):
        assert shown in page
    assert "AMR<WB>" not in page
    assert page.count('class="bound"') == 1  # of the SNR
    assert page.count('<svg class="chart"') == 2


@pytest.mark.parametrize("content", ["", "{}", '{"points": [{"system": "x"}]}', "[]", None])
def test_a_file_that_holds_no_results_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"results\.json"):
        report.read_results(path)


def write_run(folder):
    writer = SummaryWriter(str(folder / "tensorboard"))
    for step in (100, 200, 300):
        for tag in (
            "validation/snr_1",
            "validation/snr_8",
            "validation/snr_unquantized",
            "train/output_scale",
            "train/loss",
        ):
            writer.add_scalar(tag, step / 100, step)
        for book in range(1, 9):
            writer.add_scalar(f"codebooks/usage_{book}", 0.9, step)
    writer.close()
    return folder


def test_a_runs_curves_are_drawn(codec, clips, rendered, tmp_path):
    scalars = report.read_run(write_run(tmp_path))
    page = compose(codec, clips, rendered, scalars=scalars, run="a<b")
    section = page[page.index('id="training"') :]
    assert section.count('<svg class="chart"') == 4
    for label in (">1 of 8<", ">8 of 8<", ">unquantized<", ">output_scale<", ">codebook 8<", "a&lt;b, 300 steps"):
        assert label in section


def test_the_command_writes_one_page_and_replaces_it_only_when_forced(
    codec, tmp_path, tmp_path_factory, monkeypatch, capsys
):
    model = support.save(codec, tmp_path_factory)
    monkeypatch.chdir(tmp_path)
    audio.save("speech.wav", support.speech_like(1, 9 * 16000)[0])
    (tmp_path / "results.json").write_text(json.dumps(results()))
    command = [
        "report",
        "out",
        "--clips",
        "speech.wav",
        "--model",
        model,
        "--codebooks",
        "1,4",
        "--results",
        "results.json",
    ]
    command += ["--run", str(write_run(tmp_path))]
    assert cli.main(command) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.html"]
    page = (tmp_path / "out/index.html").read_text()
    assert "jaxcodec report out --clips speech.wav" in page and "tiny.safetensors" in page
    assert "8.0 s, each cut at 8 s" in page
    assert "1 clips in" in capsys.readouterr().err
    assert cli.main(command) != 0
    assert "out/index.html" in capsys.readouterr().err
    assert cli.main([*command, "--force"]) == 0


def test_what_a_user_can_mend_is_said_in_one_line(codec, tmp_path, tmp_path_factory, monkeypatch, capsys):
    model = support.save(codec, tmp_path_factory)
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["--results", "none.json"],
        ["--run", "nowhere"],
        ["--codebooks", "5"],
        ["--clips", "nowhere.wav"],
    ):
        assert cli.main(["report", "out", "--model", model, *arguments]) in (1, 2)
        told = capsys.readouterr().err
        assert "Traceback" not in told and arguments[1].split(".")[0] in told
    assert not (tmp_path / "out/index.html").exists()
