"""Quantization report: what the quantizers of each layer do, for a person to read.

In: a model whose modules have taken readings.
Out: tables on standard output, with rich where it is installed; pictures, with matplotlib.
Never: needs either of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.model import BitNetQDyT

Say = Callable[[str], None]
Row = dict[str, float]

# Titles of tables, with the readings of each as (title of a column, name, format).
# near: weights close to a threshold; dead: rows of zeros, or channels without a range;
# levels: the share of them that occurs; codebook: how evenly they do.
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
# A site belongs into the table of which it has this reading.
_MARKS = {"Weights": "weight_sqnr_db", "Activations": "sqnr_db", "Norms": "pact_clip_ratio"}


def readings_by_site(model: BitNetQDyT) -> dict[str, Row]:
    """The readings of each site, by its name and theirs; those of all together are left out."""
    sites: dict[str, Row] = {}
    for name, value in model.diagnostics(detail=True).items():
        site, _, reading = name.removeprefix("quant/").rpartition("/")
        if site:
            sites.setdefault(site, {})[reading] = value.item()
    return sites


def print_tables(model: BitNetQDyT) -> None:
    """One table for weights, one for activations, one for norms; a row a site."""
    sites = readings_by_site(model)
    for title, columns in TABLES.items():
        rows = [
            [site, *(_format(values.get(name), form) for _, name, form in columns)]
            for site, values in sites.items()
            if _MARKS[title] in values
        ]
        if rows:
            _print_table(title, ["site", *(column for column, _, _ in columns)], rows)


def save_pictures(model: BitNetQDyT, directory: Path, say: Say) -> None:
    """occupancy.png and latent_weights.png, or one line that says what is missing for them."""
    try:
        importlib.import_module("matplotlib").use("Agg")
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        say("No pictures: matplotlib is not installed (pip install matplotlib).")
        return
    directory.mkdir(parents=True, exist_ok=True)
    _draw_occupancy(pyplot, readings_by_site(model), directory / "occupancy.png")
    _draw_weights(pyplot, model, directory / "latent_weights.png")
    say(f"Pictures: {directory / 'occupancy.png'}, {directory / 'latent_weights.png'}")


def _draw_occupancy(pyplot: Any, sites: dict[str, Row], path: Path) -> None:
    ternary = {site: values for site, values in sites.items() if "zero_ratio" in values}
    figure, axes = pyplot.subplots(figsize=(7, 1 + 0.22 * len(ternary)))
    left = [0.0] * len(ternary)
    for label in ("minus", "zero", "plus"):
        shares = [values[f"{label}_ratio"] for values in ternary.values()]
        axes.barh(list(ternary), shares, left=left, label=label)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.set(xlabel="share of weights", title="Ternary occupancy")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def _draw_weights(pyplot: Any, model: BitNetQDyT, path: Path) -> None:
    found = {
        name.removeprefix("quant/").removesuffix("/latent_weights"): histogram
        for name, histogram in model.histograms(detail=True).items()
        if name.endswith("/latent_weights") and name.count("/") > 1
    }
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for site, histogram in found.items():
        shares = histogram.counts / histogram.counts.sum()
        axes.stairs(shares.tolist(), histogram.edges.tolist(), label=site)
    axes.set(xlabel="latent weight", ylabel="share", title="Latent weights by site")
    if len(found) <= 30:
        axes.legend(fontsize=5, ncol=2)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


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
        # A site that is cut short is every site.
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
