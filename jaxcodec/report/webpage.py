"""The page to listen on as HTML: one file that needs no network.

It is `page/template.html` filled in by Jinja, with `page/page.css` and `page/page.js` in it; sounds are FLAC in base64,
charts are SVG, and the browser computes the spectrograms.
"""

import base64
import datetime
import hashlib
import importlib.resources
import io
import itertools
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import jinja2

import jaxcodec
from jaxcodec import audio, evaluation, inference
from jaxcodec.report import charts, content

_COLORS = {content.ORIGINAL: 7, content.OURS: 0, content.OPUS: 1}  # in page.css
_PROVENANCE = {"date": "on", "hardware": "with", "command": "by", "model": "of model"}  # of results


class Page(NamedTuple):
    """What a page shows beside the sounds."""

    title: str
    model: str  # where the codec comes from, by name
    command: str
    sources: str  # where the clips come from
    notice: str = ""  # of the recordings
    results: dict | None = None  # what benchmarks/rate_distortion.py wrote


def compose(
    page: Page, codec: inference.TrainedCodec, clips: Sequence[content.Clip], rendered: content.Rendered
) -> str:
    """The page as HTML, one self-contained file."""
    template = templates().get_template("template.html")
    shown = [_clip(index, clip, rendered, codec.sample_rate) for index, clip in enumerate(clips)]
    by_speaker = itertools.groupby(shown, key=lambda clip: clip["speaker"])
    return template.render(
        page=page,
        codec=codec,
        style=_text("page.css"),
        script=_text("page.js"),
        clips=shown,
        speakers=[(speaker, list(group)) for speaker, group in by_speaker],
        versions=[version.label for version in rendered.versions],
        best=max(index for index, version in enumerate(rendered.versions) if version.system == content.OURS),
        measures=_titles(key for key in content.SHOWN if key in evaluation.installed()),
        figures=_figures(page.results, rendered),
        unheard_measures=[evaluation.MEASURES[key].title for key in content.HEARD if key not in evaluation.installed()],
        facts=_facts(page, codec, clips, rendered),
    )


def templates() -> jinja2.Environment:
    """Those of `page/`, which escape whatever is filled in; `tojson` writes what no text in it can close a script with."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= dict(content_hash=_content_hash, kbps=_kbps, number=_number)
    return environment


def _text(name):
    return importlib.resources.files("jaxcodec").joinpath("report", "page", name).read_text()


def _content_hash(text):
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _kbps(value):
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _number(value):
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _titles(keys):
    """What measures are called, by their keys."""
    named = {key: evaluation.MEASURES[key] for key in keys}
    return {key: measure.title + (" dB" if measure.unit == "dB" else "") for key, measure in named.items()}


def _clip(index, clip, rendered, sample_rate):
    """A clip, with the sounds and figures of its versions."""
    speaker, seconds = content.speaker(clip.name), len(clip.audio) / sample_rate
    measured = [{}, *rendered.rows[index :: len(rendered.versions[0].audio)]]  # nothing is measured of the original
    return dict(
        name=clip.name,
        speaker=speaker,
        title=os.path.splitext(clip.name.removeprefix(f"{speaker}/"))[0],
        sounds=[_flac(version.audio[index], sample_rate) for version in rendered.versions],
        versions=[
            dict(
                label=version.label,
                color=_COLORS[version.system],
                kbps=8e-3 * version.num_bytes[index] / seconds,
                net_kbps=version.payload_bytes and 8e-3 * version.payload_bytes[index] / seconds,
                scores=scores,
            )
            for version, scores in zip(rendered.versions, measured, strict=True)
        ],
    )


def _flac(clip, sample_rate):
    """float (S,) as 16-bit FLAC in base64."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, audio.to_int16(clip), sample_rate, format="FLAC", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()


def _figures(results, rendered):
    """The table and the charts of a benchmark's results, or else of the page's own clips."""
    over, payload = "the clips of this page", {}
    if results is None:
        results = dict(points=evaluation.summarize(rendered.rows, by=("system", "setting")))
        seconds = sum(row["seconds"] for row in rendered.rows) / max(1, len(rendered.versions) - 1)
        for version in rendered.versions[1:]:
            sizes = version.payload_bytes or version.num_bytes
            payload[version.system, version.setting] = 8e-3 * sum(sizes) / seconds
    else:
        over = f"{len(results.get('clips', []))} clips"
    points = results["points"]
    return dict(
        over=over,
        provenance=[f"{name} {results[key]}" for key, name in _PROVENANCE.items() if results.get(key)],
        missing=results.get("missing", {}),
        points=points,
        payload=payload,
        measures=_titles(key for key in content.MEASURED if any(point.get(key) is not None for point in points)),
        charts=_rate_charts(points, results.get("bound", [])),
    )


def _rate_charts(points, bound):
    """A chart of each measure that there are values of."""
    systems: dict[str, list[dict]] = {}
    for point in points:
        systems.setdefault(point["system"], []).append(point)
    drawn = []
    for key in content.MEASURED:
        measure = evaluation.MEASURES[key]
        curves = [
            charts.Curve(system.split(" (")[0], _against_rate(group, key), color)
            for color, (system, group) in enumerate(systems.items())
        ]
        limit = [(point["kbps"], point["snr"]) for point in bound] if key == "snr" else []
        drawn.append(
            charts.line_chart(measure.title, curves, x_label="kbit/s of whole files", y_label=measure.unit, bound=limit)
        )
    return list(filter(None, drawn))


def _against_rate(points, key):
    return sorted((point["kbps"], point[key]) for point in points if point.get(key) is not None)


def _facts(page, codec, clips, rendered):
    """(term, text) of what the page is made of."""
    seconds = sum(len(clip.audio) for clip in clips) / codec.sample_rate
    recipe = f"{codec.config.model.architecture}, {codec.frame_rate:g} frames/s {content.TIMES} {_codes(codec)}"
    return [
        ("Model", f"{page.model}, fingerprint {codec.fingerprint.hex()}"),
        ("Recipe", recipe),
        ("Date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("Command", page.command),
        ("Written by", f"jaxcodec {jaxcodec.__version__}"),
        ("Clips", f"{page.sources}: {len(clips)}, {seconds:.1f} s, each cut at {content.MAX_SECONDS} s"),
        *(("Peer", remark) for remark in rendered.remarks),
        *(("Missing", problem) for problem in rendered.missing),
    ]


def _codes(codec):
    if codec.bits_per_second is None:
        return f"{codec.num_codebooks} codes ({codec.config.model.quantizer}), entropy coded"
    bits = f"{codec.num_codebooks} codebooks {content.TIMES} {math.log2(codec.codebook_size):g} bits"
    return f"{bits}: {codec.bits_per_second / 1000:g} kbit/s nominal"
