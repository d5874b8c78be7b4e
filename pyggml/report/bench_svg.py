"""Benchmarks as a picture: bars of tokens per second, a panel for each test. SVG, so that nothing else is needed."""

from __future__ import annotations

from xml.sax.saxutils import escape

from ..benchmark import BenchReport, BenchResult, BenchSetup, threads_of

__all__ = ["to_svg"]

# one hue a split mode, apart also for the colour-blind (Okabe and Ito)
_COLOURS = {"none": "#999999", "layer": "#56b4e9", "tensor": "#e69f00"}
_CHAR, _BAR, _GAP, _TITLE, _WIDTH = 7.2, 18, 8, 34, 420
_TEXT = "#222222"


def to_svg(report: BenchReport) -> str:
    """The picture as text."""
    panels: dict[str, list[BenchResult]] = {}
    for r in report.results:
        panels.setdefault(str(r.test), []).append(r)
    labels = _labels(report)
    left = 20 + _CHAR * max(map(len, labels.values()))
    kinds = {r.model_type for r in report.results}
    title = next(iter(kinds)) if len(kinds) == 1 else "several models"
    out: list[str] = []
    y = 60.0
    for name, results in panels.items():
        out.append(_text(16, y + 14, name, weight="bold", size=14))
        y += _TITLE - 8
        top = max(r.avg_ts + r.stddev_ts for r in results)
        for r in results:
            out += _bar(r, labels[r.setup], left, y, _WIDTH / top)
            y += _BAR + _GAP
        out.append(f'<line x1="{left:.1f}" y1="{y - len(results) * (_BAR + _GAP) - 3:.1f}" x2="{left:.1f}" y2="{y - _GAP + 3:.1f}" stroke="{_TEXT}"/>')
        y += 14
    modes = list(dict.fromkeys(r.setup.options.split_mode for r in report.results))
    x = left
    for mode in modes:
        out.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="12" height="12" fill="{_COLOURS[mode]}"/>')
        out.append(_text(x + 17, y + 11, mode))
        x += 40 + _CHAR * len(mode)
    n = len(report.results[0].samples_ns)
    head = [
        _text(16, 24, f"{title}: tokens per second", weight="bold", size=16),
        _text(16, 44, f"mean and standard deviation of {n}; times over {_bases(report)}", fill="#666666"),
    ]
    values = 24 + _CHAR * max(len(_value(r)) for r in report.results)
    width, height = left + _WIDTH + values, y + 30
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" '
        'font-family="DejaVu Sans, Verdana, sans-serif" font-size="12">',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
        *head, *out, "</svg>", "",
    ])  # fmt: skip


def _bar(r: BenchResult, label: str, left: float, y: float, scale: float) -> list[str]:
    length, middle = r.avg_ts * scale, y + _BAR / 2
    low, high = left + max(0.0, r.avg_ts - r.stddev_ts) * scale, left + (r.avg_ts + r.stddev_ts) * scale
    out = [
        _text(left - 8, middle + 4, label, anchor="end"),
        f'<rect x="{left:.1f}" y="{y:.1f}" width="{length:.1f}" height="{_BAR}" fill="{_COLOURS[r.setup.options.split_mode]}"/>',
    ]
    if r.stddev_ts:
        out += [
            f'<line x1="{low:.1f}" y1="{middle:.1f}" x2="{high:.1f}" y2="{middle:.1f}" stroke="{_TEXT}"/>',
            *(f'<line x1="{x:.1f}" y1="{middle - 4:.1f}" x2="{x:.1f}" y2="{middle + 4:.1f}" stroke="{_TEXT}"/>' for x in (low, high)),
        ]
    out.append(_text(max(high, left + length) + 8, middle + 4, _value(r)))
    return out


def _value(r: BenchResult) -> str:
    reduced = "" if r.reduction.name == "none" else f", {r.reduction}"
    return f"{r.avg_ts:.{0 if r.avg_ts >= 1000 else 1 if r.avg_ts >= 100 else 2}f}  ({r.speedup:.2f}x{reduced})"


def _labels(report: BenchReport) -> dict[BenchSetup, str]:
    """What tells the configurations apart."""
    setups = list(dict.fromkeys(r.setup for r in report.results))
    parts = {
        "": [s.path.name for s in setups],
        "t": [str(threads_of(s)) for s in setups],
        "b": [str(s.options.n_batch) for s in setups],
        "k": [s.options.type_k for s in setups],
        "v": [s.options.type_v for s in setups],
        "fa ": [s.options.flash_attn for s in setups],
    }
    differing = {key: values for key, values in parts.items() if len(set(values)) > 1}
    return {s: " ".join([s.name, *(f"{key}{values[i]}" for key, values in differing.items())]) for i, s in enumerate(setups)}


def _bases(report: BenchReport) -> str:
    bases = list(dict.fromkeys(r.baseline for r in report.results))
    return bases[0] if len(bases) == 1 else "the first of each file"


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", size: int = 12, fill: str = _TEXT) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" font-size="{size}" fill="{fill}">{escape(text)}</text>'
