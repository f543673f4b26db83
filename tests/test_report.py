"""The page to listen on, without a browser: what is in it, that it needs nothing else, and where it comes from."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
import soundfile

from jaxcodec import audio, cli, evaluation
from jaxcodec.evaluation import alignment, opus
from jaxcodec.inference import pretrained
from jaxcodec.report import content, webpage
from tests import support, test_scalar

HOSTILE = "<img src=x onerror=alert(1)>/\"&'</script><b>తెలుగు\u2028"


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Only the quick measures, which mean something for noise too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "SHOWN", ("snr", "segmental_snr"))
        patch.setattr(content, "MEASURED", ("snr", "segmental_snr"))
        yield


@pytest.fixture(scope="module")
def clips():
    """Two clips of different lengths, one of an awful name."""
    first, second = support.speech_like(2, 8000)
    return [content.Clip("voice/first.wav", first), content.Clip(HOSTILE, second[:6000])]


@pytest.fixture(scope="module")
def rendered(codec, clips):
    """The clips through the tiny codec and Opus."""
    return content.render(codec, clips, [1, 4])


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
        codec,
        clips,
        rendered,
        title="</title><script>x",
        notice="<b>&",
        command="{{ page.title }} '<i>'",
        sources="<u>",
    )
    tags = [tag for tag, _ in Elements(titled).found]
    assert not {"img", "b", "i", "u"} & set(tags)
    assert tags.count("script") == 2 + len(clips)
    assert "&lt;/title&gt;&lt;script&gt;x" in titled and "{{ page.title }} &#39;&lt;i&gt;" in titled
    assert json.loads(Elements(titled).data["facts"])["clips"][1] == HOSTILE


def test_the_picker_has_the_clips_in_their_order_by_speaker(codec):
    clips = [content.Clip(name, np.zeros(1600, np.float32)) for name in ("a/1.wav", "a/2.wav", "b.wav", "a/3.wav")]
    page = compose(codec, clips, content.render(codec, clips, [1]))
    buttons = [
        attributes["title"] for tag, attributes in Elements(page).found if tag == "button" and "title" in attributes
    ]
    assert buttons == [clip.name for clip in clips]
    assert re.findall("<legend>(.*?)</legend>", page) == ["a", "Clips", "a"]


def test_figures_are_those_of_the_bytes_and_of_score(page, clips, rendered):
    version = rendered.versions[2]
    assert version.label == "jaxcodec \N{MULTIPLICATION SIGN} 4"
    rows = [part for part in page.split("<tr>")[1:] if version.label in part]
    for clip, decoded, num_bytes, row in zip(clips, version.audio, version.num_bytes, rows[:2], strict=True):
        expected = evaluation.score(clip.audio, decoded, 16000, ["snr"])["snr"]
        rate = 8e-3 * num_bytes / (len(clip.audio) / 16000)
        cells = re.findall(r"<td>([-\d.]+)", row)[:3]
        assert [float(cell) for cell in cells] == pytest.approx([rate, rate, expected], abs=0.05)


def test_the_page_says_what_it_is_made_of(page, codec):
    for fact in (codec.fingerprint.hex(), "the model", "jaxcodec report out", "here: 2", "libopus", "UTC"):
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
    assert evaluation.score(clip, aligned[0], 16000, ["snr"])["snr"] > 10


def test_opus_out_of_range_is_refused_and_its_lack_is_named(codec, clips, monkeypatch):
    with pytest.raises(ValueError, match="expected 6 to 256"):
        opus.round_trip(clips[0].audio, 16000, 5)
    monkeypatch.setattr(soundfile, "available_subtypes", lambda _: {})
    without = content.render(codec, clips, [1])
    assert [version.system for version in without.versions] == ["original", "jaxcodec"]
    assert "Opus: this libsndfile" in compose(codec, clips, without)


def test_a_measure_without_its_package_is_named(codec, clips, monkeypatch):
    monkeypatch.setattr(content, "MEASURED", ("snr", "visqol"))
    here = {key: measure for key, measure in evaluation.MEASURES.items() if key != "visqol"}
    monkeypatch.setattr(evaluation, "installed", lambda: here)
    page = compose(codec, clips, content.render(codec, clips, [1]))
    assert "ViSQOL: not installed" in page


def test_clips_are_spread_over_the_speakers_and_keep_their_order():
    names = [f"{speaker}/{i:02}" for speaker, count in (("a", 20), ("b", 2), ("c", 9)) for i in range(count)]
    chosen = content.spread(names, 12)
    assert [sum(name.startswith(speaker) for name in chosen) for speaker in "abc"] == [5, 2, 5]
    assert chosen == sorted(chosen) and content.spread(["one"]) == ["one"]


def test_the_bundled_clips_are_a_dozen_of_every_speaker_with_their_notice():
    clips, notice = content.bundled_clips()
    assert len(clips) == 12
    assert {content.speaker(clip.name) for clip in clips} == {"festvox-ru", "piper-joe", "espeak-te-f5"}
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
    page = compose(codec, clips, rendered, results=content.read_results(path))
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


@pytest.mark.parametrize("text", ["", "{}", '{"points": [{"system": "x"}]}', "[]", None])
def test_a_file_that_holds_no_results_is_refused_in_one_line(text, tmp_path):
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=r"results\.json"):
        content.read_results(path)


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
    assert cli.main(command) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.html"]
    page = (tmp_path / "out/index.html").read_text()
    assert "jaxcodec report out --clips speech.wav" in page and "tiny.safetensors" in page
    assert "8.0 s, each cut at 8 s" in page
    assert "1 clip in" in capsys.readouterr().err
    assert cli.main(command) != 0
    assert "out/index.html" in capsys.readouterr().err
    assert cli.main([*command, "--force"]) == 0


def test_a_page_at_kbps_has_versions_of_so_many_and_opus_beside_them(clips):
    config = test_scalar.small_config()
    state = support.make_state(support.make_model(config))
    codec = pretrained.make(state.params, state.quantizer, config)
    rates = [evaluation.AtKbps(40), evaluation.AtKbps(60, (None, 0)), (-20.0, 0.75), (-20.0, 0.25)]
    rendered = content.render(codec, clips, rates)
    labels = [version.label for version in rendered.versions]
    assert labels[1:5] == [
        "jaxcodec at 40 kbit/s",
        "jaxcodec at 60 kbit/s, shape 0",
        "jaxcodec at -20 dB",
        "jaxcodec at -20 dB, shape 0.25",
    ]
    assert {"Opus 40", "Opus 60"} <= set(labels)
    for asked, version in zip((40, 60), rendered.versions[1:], strict=False):
        for clip, size in zip(clips, version.num_bytes, strict=True):
            assert 0.95 * asked < 8e-3 * size / (len(clip.audio) / 16000) <= asked
    page = compose(codec, clips, rendered)
    assert "jaxcodec at 60 kbit/s, shape 0" in page


def test_a_run_is_accepted_and_its_curves_are_left_to_tensorboard(
    codec, tmp_path, tmp_path_factory, monkeypatch, capsys
):
    model = support.save(codec, tmp_path_factory)
    monkeypatch.chdir(tmp_path)
    audio.save("speech.wav", support.speech_like(1, 8000)[0])
    command = ["report", "out", "--clips", "speech.wav", "--model", model, "--codebooks", "1"]
    assert cli.main([*command, "--run", "runs/a"]) == 0
    assert "tensorboard --logdir runs/a/tensorboard\n" in capsys.readouterr().err
    assert cli.main([*command, "--force"]) == 0
    assert "tensorboard" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["report", "--help"])
    assert "--run" not in capsys.readouterr().out


def test_what_a_user_can_mend_is_said_in_one_line(codec, tmp_path, tmp_path_factory, monkeypatch, capsys):
    model = support.save(codec, tmp_path_factory)
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["--results", "none.json"],
        ["--codebooks", "5"],
        ["--clips", "nowhere.wav"],
    ):
        assert cli.main(["report", "out", "--model", model, *arguments]) in (1, 2)
        told = capsys.readouterr().err
        assert "Traceback" not in told and arguments[1].split(".")[0] in told
    assert not (tmp_path / "out/index.html").exists()


def test_without_the_measures_of_the_ear_the_page_says_what_it_leaves_out(codec, clips, rendered, page, monkeypatch):
    told = "These figures leave out the ear: {} not measured"
    here = set(evaluation.installed())
    missing = [evaluation.MEASURES[key].title for key in content.HEARD if key not in here]
    assert bool(missing) == (told.split(":")[0] in page)
    monkeypatch.setattr(evaluation, "installed", lambda: {"snr": evaluation.MEASURES["snr"]})
    deaf = compose(codec, clips, rendered)
    assert deaf.count(told.format("PESQ-WB, ESTOI, ViSQOL are")) == 2 and "jaxcodec[metrics]" in deaf


def test_rates_of_files_and_of_what_is_in_their_containers_stand_apart(codec, clips, rendered, page):
    peer = rendered.versions[-1]
    assert peer.system == content.OPUS
    kbps = [8e-3 * sum(sizes) / (14000 / 16000) for sizes in (peer.num_bytes, peer.payload_bytes)]
    row = re.search(rf"<th scope=\"row\">Opus, {peer.setting}</th><td>(\S+)</td><td>(\S+)</td>", page)
    for shown, expected in zip(row.groups(), kbps, strict=True):
        assert float(shown) == pytest.approx(expected, rel=0.01)
    assert kbps[1] < kbps[0]


def test_the_scale_of_a_chart_is_named_whole(page):
    assert ">SNR, dB</text>" in page and ">kbit/s of whole files</text>" in page
