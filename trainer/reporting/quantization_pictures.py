"""Pictures of a model's quantization by layer, as one page for a browser.

In: the readings of each site, and histograms of its weights and scales.
Out: HTML with inline SVG, complete in itself.
Never: runs a script, or loads anything from elsewhere.

Every figure is a table with a row for each layer, a column for each site, and a small picture
in each cell, so that layers can be compared downwards and sites sideways.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from trainer.model.diagnostics.alarms import LEAST_WEIGHT_SQNR_DB

Readings = Mapping[str, Mapping[str, float]]
Draw = Callable[[str], str | None]
"""A function from a site to its picture as HTML; None if it has none."""

WIDTH, BAR_HEIGHT, HISTOGRAM_HEIGHT = 118, 12, 40
MINUS, ZERO, PLUS, BAR, OTHER, LINE = (
    "#3b6fb6", "#c9ccd1", "#d9812e", "#4f8f6b", "#aab4bd", "#c0392b"
)  # fmt: skip

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #222; margin: 24px; }
h2 { margin: 28px 0 2px; font-size: 17px; }
p { margin: 2px 0 8px; max-width: 60em; }
table { border-collapse: collapse; }
th { font-weight: 600; font-size: 12px; text-align: left; white-space: nowrap; }
th, td { padding: 2px 10px 2px 0; vertical-align: top; }
tr:hover { background: #f4f6f8; }
svg { display: block; }
small { font-size: 11px; color: #444; white-space: nowrap; }
i { display: inline-block; width: 11px; height: 11px; margin: 0 4px 0 12px; }
.alarm { color: #c0392b; }
"""


class SiteWeights(NamedTuple):
    """Histograms of a site as (edges, counts), and the mean borders of its code 0."""

    latent: tuple[list[float], list[float]]
    scales: tuple[list[float], list[float]] | None
    borders: tuple[float, float] | None


def draw_page(
    title: str,
    facts: Iterable[str],
    alarms: Iterable[str],
    readings: Readings,
    weights: Mapping[str, SiteWeights],
    ideal_overload: float,
) -> str:
    """Return the whole page as HTML. Sites are names like layers.3.ffn.up, or head.input."""
    figures = [
        *_weight_figures(readings),
        *_activation_figures(readings, ideal_overload),
        *_histogram_figures(weights),
    ]
    told = "".join(f'<p class="alarm">{html.escape(alarm)}</p>' for alarm in alarms)
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n"
        + "".join(f"<p>{html.escape(fact)}</p>\n" for fact in facts)
        + told
        + "\n".join(figures)
        + "</html>\n"
    )


def _weight_figures(readings: Readings) -> list[str]:
    return [
        _figure(
            "Occupancy of the ternary codes",
            f"Share of weights, %: {_key(MINUS, '-1')}{_key(ZERO, '0')}{_key(PLUS, '+1')}",
            readings,
            lambda site: _occupancy(readings[site]),
        ),
        _bars(
            "Signal to noise of the weights",
            "SQNR in dB, of ternary weights; the red line is the least that is healthy, "
            f"{LEAST_WEIGHT_SQNR_DB:g} dB. {_key(OTHER, 'more bits, off this scale')}",
            readings,
            "weight_sqnr_db",
            unit=" dB",
            line=LEAST_WEIGHT_SQNR_DB,
            scaled_by="zero_ratio",
        ),
    ]


def _activation_figures(readings: Readings, ideal_overload: float) -> list[str]:
    return [
        _bars(
            "Signal to noise of the activations",
            "SQNR in dB of the input of each linear layer, followed by its bits in force.",
            readings,
            "sqnr_db",
            unit=" dB",
        ),
        _bars(
            "Overload of the activations",
            f"Share of values beyond the largest level, %; the red line is the ideal, "
            f"{100 * ideal_overload:.2g} %, which lies above the percentile.",
            readings,
            "overload_ratio",
            line=ideal_overload,
        ),
        _bars(
            "Codebook of the activations",
            "Entropy of the levels in use, % of the most that the bits allow.",
            readings,
            "codebook_utilization_ratio",
        ),
        _bars("Saturation of tanh", "Share beyond 0.97, %.", readings, "tanh_saturation_ratio"),
        _bars("Clip of PACT", "Share of values that are clipped, %.", readings, "pact_clip_ratio"),
    ]


def _histogram_figures(weights: Mapping[str, SiteWeights]) -> list[str]:
    return [
        _figure(
            "Latent weights",
            f"Counts of the weights that are quantized. {_line_key('mean borders of code 0')}",
            weights,
            lambda site: _histogram(weights[site].latent, weights[site].borders or ()),
        ),
        _figure(
            "Scales",
            "Counts of the learned scales; each row of a weight has one.",
            weights,
            lambda site: _histogram(weights[site].scales),
        ),
    ]


def _bars(
    title: str,
    caption: str,
    readings: Readings,
    name: str,
    unit: str | None = None,
    line: float | None = None,
    scaled_by: str | None = None,
) -> str:
    """Return a figure with a bar for each site, all on one scale.

    Values without a unit are shares, shown in percent. If scaled_by names a reading, the
    scale fits only the sites that have it, and the bars of others are cut off.
    """
    fitting = [v[name] for v in readings.values() if name in v and (scaled_by or name) in v]
    most = max([*fitting, line or 0.0, 1e-9]) * 1.05

    def draw(site: str) -> str | None:
        values = readings[site]
        if name not in values:
            return None
        value = values[name]
        text = f"{value:.1f}{unit}" if unit else f"{100 * value:.2f} %"
        bits = f" · {values['bits']:.3g} bit" if unit and "bits" in values else ""
        color = BAR if (scaled_by or name) in values else OTHER
        shapes = _rect(0, WIDTH * min(1.0, max(0.0, value) / most), color)
        if line is not None:
            shapes += _vertical(WIDTH * line / most, BAR_HEIGHT)
        return _svg(shapes, BAR_HEIGHT) + f"<small>{text}{bits}</small>"

    return _figure(title, caption, readings, draw)


def _occupancy(values: Mapping[str, float]) -> str | None:
    if "zero_ratio" not in values:
        return None
    shapes, left = "", 0.0
    shares = [values[f"{code}_ratio"] for code in ("minus", "zero", "plus")]
    for share, color in zip(shares, (MINUS, ZERO, PLUS), strict=True):
        shapes += _rect(WIDTH * left, WIDTH * share, color)
        left += share
    text = " · ".join(f"{100 * share:.0f}" for share in shares)
    return _svg(shapes, BAR_HEIGHT) + f"<small>{text}</small>"


def _histogram(
    found: tuple[list[float], list[float]] | None, borders: Iterable[float] = ()
) -> str | None:
    if found is None:
        return None
    edges, counts = found
    low, span, most = edges[0], edges[-1] - edges[0], max(counts)
    width = WIDTH / len(counts)
    shapes = "".join(
        _rect(number * width, width, BAR, HISTOGRAM_HEIGHT * count / most, HISTOGRAM_HEIGHT)
        for number, count in enumerate(counts)
        if count
    )
    shapes += "".join(
        _vertical(WIDTH * (border - low) / span, HISTOGRAM_HEIGHT) for border in borders
    )
    return _svg(shapes, HISTOGRAM_HEIGHT) + f"<small>{low:.3g} to {edges[-1]:.3g}</small>"


def _figure(title: str, caption: str, sites: Iterable[str], draw: Draw) -> str:
    """Return a figure as HTML; "" if no site has a picture. The caption is HTML too."""
    cells = {_place(site): cell for site in sites if (cell := draw(site)) is not None}
    if not cells:
        return ""
    rows = list(dict.fromkeys(row for row, _ in cells))
    columns = list(dict.fromkeys(column for _, column in cells))
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr><th>{html.escape(row)}</th>"
        + "".join(f"<td>{cells.get((row, column), '')}</td>" for column in columns)
        + "</tr>\n"
        for row in rows
    )
    return f"<h2>{title}</h2><p>{caption}</p><table><tr><th></th>{head}</tr>\n{body}</table>"


def _place(site: str) -> tuple[str, str]:
    """Return row and column of a site: `layer 3` and `ffn.up` for layers.3.ffn.up."""
    first, _, rest = site.partition(".")
    if first != "layers":
        return first, rest
    number, _, rest = rest.partition(".")
    return f"layer {number}", rest


def _svg(shapes: str, height: int) -> str:
    frame = f'<rect width="{WIDTH}" height="{height}" fill="#f1f2f4"/>'
    return f'<svg width="{WIDTH}" height="{height}">{frame}{shapes}</svg>'


def _rect(
    x: float, width: float, color: str, height: float = BAR_HEIGHT, bottom: float = BAR_HEIGHT
) -> str:
    return (
        f'<rect x="{x:.1f}" y="{bottom - height:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" fill="{color}"/>'
    )


def _vertical(x: float, height: int) -> str:
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y2="{height}" stroke="{LINE}" stroke-width="1.5"/>'


def _key(color: str, text: str) -> str:
    return f'<i style="background:{color}"></i>{text}'


def _line_key(text: str) -> str:
    return f'<i style="background:{LINE};width:2px"></i>{text}'
