"""Averages as aligned text."""

from collections.abc import Sequence

from jaxcodec.evaluation import measures

_NAMES = {"kbps_asked": "kbit/s asked"}
_MAIN = ("snr", "segmental_snr", "pesq_wb", "estoi")


def format_table(summaries: Sequence[dict], by: Sequence[str] = ("codebooks",)) -> str:
    """Summaries as aligned text, a column each: means and half the width of their intervals, a dash for no value."""
    lines = [[_NAMES.get(name, name), *(_format_rate(row[name]) for row in summaries)] for name in by]
    lines.append(["kbit/s", *(f"{row['kbps']:.2f}" for row in summaries)])
    lines.append(["pooled SNR (dB)", *(_format_mean(row["pooled_snr"], None) for row in summaries)])
    for key, measure in measures.installed().items():
        lines.append([_title(measure), *(_format_mean(row[key], row["intervals"][key]) for row in summaries)])
    return _align(lines)


def format_groups(summaries: Sequence[dict], by: Sequence[str]) -> str:
    """Summaries of many groups as aligned text, a line each, with the measures of `_MAIN`."""
    shown = {key: measure for key, measure in measures.installed().items() if key in _MAIN}
    lines = [[*(_NAMES.get(name, name) for name in by), "clips", "kbit/s", *map(_title, shown.values())]]
    for row in summaries:
        means = [_format_mean(row[key], row["intervals"][key]) for key in shown]
        lines.append(
            [*(_format_rate(row[name]) or "-" for name in by), str(row["clips"]), f"{row['kbps']:.2f}", *means]
        )
    return _align(lines)


def format_usage(usage: Sequence[dict]) -> str:
    """What `codebook_usage` gives as aligned text, a column a codebook."""
    columns = [(str(row["codebook"]), f"{100 * row['usage']:.1f}", f"{row['perplexity']:.1f}") for row in usage]
    return _align(list(zip(("codebook", "used (%)", "perplexity"), *columns, strict=True)))


def _title(measure):
    return f"{measure.title} ({measure.unit})" if measure.unit else measure.title


def _format_rate(value):
    return f"{value:g}" if isinstance(value, float) else str(value)


def _align(lines):
    """Lines of cells as text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def _format_mean(mean, interval):
    if mean is None:
        return "-"
    return f"{mean:.2f}" + ("" if interval is None else f" ±{(interval[1] - interval[0]) / 2:.2f}")
