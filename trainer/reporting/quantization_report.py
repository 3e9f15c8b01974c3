"""A report of a model's quantization by layer: tables, and a page of pictures.

In: a model whose modules have taken readings.
Out: tables on standard output, with rich if that is installed; HTML.
Never: needs rich, or writes a file.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

from torch import Tensor

from trainer.model import BitNetQDyT
from trainer.model.diagnostics.alarms import find_alarms
from trainer.model.diagnostics.diagnostics import Diagnostics
from trainer.model.linear import QuantizedLinear, linear_layers
from trainer.model.readings import metric_path
from trainer.reporting.quantization_pictures import SiteWeights, draw_page

Row = dict[str, float]

ALARMS_SHOWN = 10

# Titles of tables, with the readings of each as (title of a column, name, format).
# near: weights close to an edge of the dead zone; dead: rows of zeros, or channels whose range
# is almost 0; levels: the share of levels that occur; codebook: how evenly they occur.
TABLES: dict[str, list[tuple[str, str, str]]] = {
    "Weights": [
        ("bits", "bits", ".1f"),
        ("SQNR dB", "weight_sqnr_db", ".1f"),
        ("-1", "minus_ratio", ".0%"),
        ("0", "zero_ratio", ".0%"),
        ("+1", "plus_ratio", ".0%"),
        ("dead", "dead_rows_ratio", ".1%"),
        ("near", "threshold_crowding_ratio", ".0%"),
        ("scale", "scale_mean", ".4f"),
        ("zone", "dead_zone_mean", ".4f"),
    ],
    "Activations": [
        ("bits", "bits", ".0f"),
        ("SQNR dB", "sqnr_db", ".1f"),
        ("overload", "overload_ratio", ".2%"),
        ("codebook", "codebook_utilization_ratio", ".0%"),
        ("levels", "levels_used_ratio", ".0%"),
        ("dead", "dead_channels_ratio", ".1%"),
    ],
    "Norms": [
        ("saturated", "tanh_saturation_ratio", ".2%"),
        ("clipped", "pact_clip_ratio", ".2%"),
    ],
}
# A site is listed in a table if it has this reading.
_MARKS = {"Weights": "weight_sqnr_db", "Activations": "sqnr_db", "Norms": "pact_clip_ratio"}


def readings_by_site(model: BitNetQDyT) -> dict[str, Row]:
    """Return the readings of each site as {site: {reading: value}}, without those of the model."""
    sites: dict[str, Row] = {}
    for name, value in _numbers(Diagnostics(model).collect(detail=True)).items():
        site, _, reading = name.removeprefix("quant/").rpartition("/")
        if site:
            sites.setdefault(site, {})[reading] = value
    return sites


def print_tables(model: BitNetQDyT) -> None:
    """Print tables of weights, activations and norms, with a row for each site."""
    sites = readings_by_site(model)
    for title, columns in TABLES.items():
        rows = [
            [site, *(_format(values.get(name), form) for _, name, form in columns)]
            for site, values in sites.items()
            if _MARKS[title] in values
        ]
        if rows:
            _print_table(title, ["site", *(column for column, _, _ in columns)], rows)


def make_page(model: BitNetQDyT, title: str, facts: Sequence[str]) -> str:
    """Return a page with pictures of the same readings, and histograms, as HTML."""
    alarms = list(find_alarms(_numbers(Diagnostics(model).collect(detail=True))).values())
    more = [f"and {len(alarms) - ALARMS_SHOWN} more like this"] if alarms[ALARMS_SHOWN:] else []
    return draw_page(
        title,
        facts,
        [*alarms[:ALARMS_SHOWN], *more],
        readings_by_site(model),
        _weights_by_site(model),
        ideal_overload=1.0 - model.config.percentile / 100.0,
    )


def _numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in values.items()}


def _weights_by_site(model: BitNetQDyT) -> dict[str, SiteWeights]:
    found = {
        name.removeprefix("quant/"): (histogram.edges.tolist(), histogram.counts.tolist())
        for name, histogram in Diagnostics(model).histograms(detail=True).items()
    }
    return {
        site: SiteWeights(
            latent=found[f"{site}/latent_weights"],
            scales=found.get(f"{site}/scales"),
            borders=_borders(linear),
        )
        for site, linear in (
            (metric_path(name), linear) for name, linear in linear_layers(model).items()
        )
    }


def _borders(linear: QuantizedLinear) -> tuple[float, float] | None:
    """Return the weights between which the code is 0: the row means of t - delta and t + delta.

    None if the layer is not ternary, or does not learn them.
    """
    columns = linear.columns()
    if columns is None or not linear.is_ternary:
        return None
    low, high = columns.threshold - columns.dead_zone, columns.threshold + columns.dead_zone
    return low.mean().item(), high.mean().item()


def _format(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    try:
        table_module = importlib.import_module("rich.table")
        console = importlib.import_module("rich.console").Console()
    except ImportError:
        _print_plain(title, columns, rows)
        return
    table = table_module.Table(
        title=title, title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for number, column in enumerate(columns):
        # The names of sites, in the first column, are never cut: cut names would look alike.
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print()


def _print_plain(title: str, columns: list[str], rows: list[list[str]]) -> None:
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    print(title)
    for row in [columns, *rows]:
        first, *rest = zip(row, widths, strict=True)
        print("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]))
    print()
