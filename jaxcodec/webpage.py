"""The page to listen on as HTML: one file that needs no network.

It is `page/template.html` with `page/page.css` and `page/page.js` in it; sounds are FLAC in base64, charts are SVG, and the
browser computes the spectrograms.
"""

import base64
import datetime
import hashlib
import html
import importlib.resources
import io
import json
import math
import os
import string
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

import jaxcodec
from jaxcodec import audio, charts, evaluate, inference, pretrained, report

_COLOURS = {report.ORIGINAL: 7, report.OURS: 0, report.OPUS: 1}  # in page.css
_NONE = "-"
_RESULT_FACTS = {"date": "on", "hardware": "with", "command": "by", "model": "of model"}


class Page(NamedTuple):
    """What a page shows beside the sounds."""

    title: str
    model: str  # where the codec comes from, by name
    command: str
    sources: str  # where the clips come from
    notice: str = ""  # of the recordings
    results: dict | None = None  # what benchmarks/rate_distortion.py wrote
    scalars: dict | None = None  # of `events.read_scalars`
    run: str = ""  # the name of the run they are from


def compose(page: Page, codec: inference.TrainedCodec, clips: Sequence[report.Clip], rendered: report.Rendered) -> str:
    """The page as HTML, one self-contained file."""
    files = importlib.resources.files("jaxcodec").joinpath("page")
    style, script = (files.joinpath(name).read_text() for name in ("page.css", "page.js"))
    training = _training(page) if page.scalars else ""
    parts = dict(
        title=_escape(page.title),
        lead=_escape(
            f"{len(clips)} clips, each in {len(rendered.versions)} versions that play in step: switch while you listen, "
            "and nothing but the codec changes. Levels are as the codecs leave them."
        ),
        style=style,
        script=script,
        style_hash=_content_hash(style),
        script_hash=_content_hash(script),
        picker=_picker(clips),
        tables="".join(_clip_table(index, clip, rendered, codec.sample_rate) for index, clip in enumerate(clips)),
        nyquist=f"{codec.sample_rate / 2000:g}",
        options_a=_options([version.label for version in rendered.versions], 0),
        options_b=_options([version.label for version in rendered.versions], _best(rendered.versions)),
        clip_options=_options([clip.name for clip in clips]),
        figures=_figures(page.results, rendered),
        training=training,
        training_link='<a href="#training">Training</a>' if training else "",
        facts=_facts(page, codec, clips, rendered),
        notice=_notice(page),
        facts_json=_json(
            dict(
                sampleRate=codec.sample_rate,
                clips=[clip.name for clip in clips],
                versions=[version.label for version in rendered.versions],
            )
        ),
        sounds="\n".join(_sounds(index, rendered.versions, codec.sample_rate) for index in range(len(clips))),
    )
    return string.Template(files.joinpath("template.html").read_text()).substitute(parts)


def _escape(text) -> str:
    return html.escape(str(text))


def _content_hash(text):
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(value):
    """JSON that stands in a script element: no text in it can close that."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _sounds(index, versions, sample_rate):
    encoded = [_flac(version.audio[index], sample_rate) for version in versions]
    return f'<script type="application/json" id="sounds-{index}">{_json(encoded)}</script>'


def _flac(clip, sample_rate):
    """float (S,) as 16-bit FLAC in base64."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, audio.to_int16(clip), sample_rate, format="FLAC", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()


def _best(versions):
    """The index of our highest rate."""
    return max(index for index, version in enumerate(versions) if version.system == report.OURS)


def _picker(clips):
    speakers: dict[str, list[str]] = {}
    for clip in clips:
        name = os.path.splitext(clip.name.removeprefix(f"{report.speaker(clip.name)}/"))[0]
        button = f'<button type="button" aria-pressed="false" title="{_escape(clip.name)}">{_escape(name)}</button>'
        speakers.setdefault(report.speaker(clip.name), []).append(button)
    return "".join(
        f"<fieldset><legend>{_escape(speaker or 'Clips')}</legend><div>{''.join(buttons)}</div></fieldset>"
        for speaker, buttons in speakers.items()
    )


def _options(labels, chosen=None):
    return "".join(
        f'<option value="{index}"{" selected" if index == chosen else ""}>{_escape(label)}</option>'
        for index, label in enumerate(labels)
    )


def _clip_table(index, clip, rendered, sample_rate):
    """The versions of a clip: a button that switches to each, and its figures."""
    of_clip = [{}, *rendered.rows[index :: len(rendered.versions[0].audio)]]  # nothing is measured of the original
    seconds = len(clip.audio) / sample_rate
    measures = [key for key in report.SHOWN if key in evaluate.installed()]
    lines = []
    for place, version in enumerate(rendered.versions):
        row = of_clip[place]
        key = f"<kbd>{place + 1}</kbd>" if place < 9 else ""
        button = (
            f'<button type="button" class="version" aria-pressed="false"><span class="swatch c{_COLOURS[version.system]}">'
            f"</span>{_escape(version.label)}{key}</button>"
        )
        rate = _rate(version.num_bytes[index], seconds)
        if version.payload_bytes:
            rate += f"<small>{_rate(version.payload_bytes[index], seconds)} net</small>"
        cells = "".join(f"<td>{_number(row.get(key))}</td>" for key in measures)
        lines.append(f'<tr><th scope="row">{button}</th><td>{rate}</td>{cells}</tr>')
    titles = ["kbit/s", *(_title(key) for key in measures)]
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="Versions of {_escape(clip.name)}" hidden><table>'
        f"<thead><tr><th>Version</th>{''.join(f'<th>{title}</th>' for title in titles)}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _rate(num_bytes, seconds):
    kbps = 8e-3 * num_bytes / seconds
    return f"{kbps:.2f}" if kbps < 10 else f"{kbps:.1f}"


def _title(key):
    measure = evaluate.MEASURES[key]
    return _escape(measure.title + (f" {measure.unit}" if measure.unit == "dB" else ""))


def _number(value, digits=2):
    return _NONE if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _figures(results, rendered):
    """The table and the charts of a benchmark's results, or else of the page's own clips."""
    if results is None:
        points, bound = evaluate.summarize(rendered.rows, by=("system", "setting")), []
        told = "Means over the clips of this page, with 95 % bootstrap intervals over clips."
    else:
        points, bound = results["points"], results.get("bound", [])
        told = f"Means over {len(results.get('clips', []))} clips, with 95 % bootstrap intervals over clips."
        facts = [f"{name} {results[key]}" for key, name in _RESULT_FACTS.items() if results.get(key)]
        told += f" Measured {', '.join(facts)}." if facts else ""
        told += "".join(f" {name}: {reason}." for name, reason in results.get("missing", {}).items())
    return f"<p>{_escape(told)}</p>{_points_table(points)}{_rate_charts(points, bound)}"


def _points_table(points):
    keys = [key for key in report.MEASURED if any(point.get(key) is not None for point in points)]
    head = "".join(f"<th>{title}</th>" for title in ("System", "kbit/s", *map(_title, keys)))
    lines = []
    for point in points:
        cells = "".join(f"<td>{_mean(point, key)}</td>" for key in keys)
        system, _, detail = point["system"].partition(" (")
        name = _escape(", ".join(filter(None, (system, str(point["setting"])))))
        name += f"<small>{_escape(detail.removesuffix(')'))}</small>" if detail else ""
        lines.append(f'<tr><th scope="row">{name}</th><td>{_rate(125 * point["kbps"], 1)}</td>{cells}</tr>')
    return (
        '<div class="scroll card" role="region" tabindex="0" aria-label="Figures of every system and rate"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _mean(point, key):
    interval = (point.get("intervals") or {}).get(key)
    if point.get(key) is None or not interval:
        return _number(point.get(key))
    return f"{_number(point[key])}<small>{_number(interval[0])} to {_number(interval[1])}</small>"


def _rate_charts(points, bound):
    systems: dict[str, list[dict]] = {}
    for point in points:
        systems.setdefault(point["system"], []).append(point)
    figures = []
    for key in report.MEASURED:
        curves = [
            charts.Curve(system.split(" (")[0], _against_rate(group, key), colour, marked=True)
            for colour, (system, group) in enumerate(systems.items())
        ]
        limit = [(p["kbps"], p["snr"]) for p in bound] if key == "snr" else []
        chart = charts.line_chart(
            evaluate.MEASURES[key].title,
            curves,
            x_label="kbit/s, measured",
            y_label=evaluate.MEASURES[key].unit,
            log_x=True,
            bound=limit,
        )
        figures.append(_figure(f"{evaluate.MEASURES[key].title} against rate", chart))
    return _charts(figures)


def _against_rate(points, key):
    return sorted((point["kbps"], point[key]) for point in points if point.get(key) is not None)


def _figure(title, chart):
    return f"<figure><figcaption>{_escape(title)}</figcaption>{chart}</figure>" if chart else ""


def _charts(figures):
    return f'<div class="charts">{"".join(figures)}</div>'


def _training(page):
    """The section of a run's curves, against its steps."""
    scalars = page.scalars
    counts = sorted(int(tag[15:]) for tag in scalars if tag.startswith("validation/snr_") and tag[15:].isdigit())
    books = sorted(int(tag[16:]) for tag in scalars if tag.startswith("codebooks/usage_") and tag[16:].isdigit())
    terms = ("mse", "perceptual", "commitment")
    panels = [
        (
            "Validation SNR by number of codebooks",
            "dB",
            [(f"{n} of {max(counts)}", f"validation/snr_{n}") for n in counts]
            + [("unquantized", "validation/snr_unquantized")],
        ),
        ("Loss", "", [("training", "train/loss"), ("validation", "validation/loss")]),
        ("Validation loss terms", "", [(term, f"validation/{term}") for term in terms]),
        ("Shares of the gradient at the latents", "", [(term, f"gradient_share/{term}") for term in terms]),
        ("output_scale", "", [("output_scale", "train/output_scale")]),
        (
            "Level, output over input",
            "",
            [("range ratio", "validation/range_ratio"), ("RMS ratio", "validation/rms_ratio")],
        ),
        ("Share of centroids in use", "", [(f"codebook {n}", f"codebooks/usage_{n}") for n in _ends(books)]),
        ("Perplexity", "", [(f"codebook {n}", f"codebooks/perplexity_{n}") for n in _ends(books)]),
    ]
    figures = []
    for title, unit, tags in panels:
        curves = [charts.Curve(label, scalars.get(tag, []), place) for place, (label, tag) in enumerate(tags)]
        figures.append(_figure(title, charts.line_chart(title, curves, x_label="step", y_label=unit)))
    steps = max((points[-1][0] for points in scalars.values() if points), default=0)
    return (
        '<section id="training" aria-labelledby="training-title"><h2 id="training-title">Training</h2>'
        f"<p>{_escape(f'The run {page.run}, {steps} steps, a point an epoch.')}</p>{_charts(figures)}</section>"
    )


def _ends(books):
    """Of codebook numbers the first, some between, and the last: as many as one panel can label."""
    return [books[i] for i in sorted({round(x) for x in np.linspace(0, len(books) - 1, min(4, len(books)))})]


def _facts(page, codec, clips, rendered):
    bits = math.log2(codec.codebook_size)
    seconds = sum(len(clip.audio) for clip in clips) / codec.sample_rate
    facts = [
        ("Model", f"{page.model}, fingerprint {pretrained.fingerprint(codec).hex()}"),
        (
            "Recipe",
            f"{codec.config.model.architecture}, {codec.frame_rate:g} frames/s {report.TIMES} {codec.num_codebooks} "
            f"codebooks {report.TIMES} {bits:g} bits: {codec.bits_per_second / 1000:g} kbit/s nominal",
        ),
        ("Date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("Command", page.command),
        ("Written by", f"jaxcodec {jaxcodec.__version__}"),
        ("Clips", f"{page.sources}: {len(clips)}, {seconds:.1f} s, each cut at {report.MAX_SECONDS} s"),
        *(("Peer", remark) for remark in rendered.remarks),
        *(("Missing", problem) for problem in rendered.missing),
    ]
    return "".join(f"<div><dt>{_escape(term)}</dt><dd>{_escape(text)}</dd></div>" for term, text in facts)


def _notice(page):
    """The licences that go with the recordings, folded away."""
    if not page.notice:
        return ""
    return f"<details><summary>Licences of the recordings</summary><pre>{_escape(page.notice)}</pre></details>"
