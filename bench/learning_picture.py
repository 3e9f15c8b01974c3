"""A picture of learning curves: validation nats over steps, one line a variant.

In: finished runs.
Out: a PNG file.
Never: needed by anything else; matplotlib is wanted here alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.learning import Result


def draw(results: list[Result], unigram_nats: float, path: Path) -> str:
    """Draw the mean over seeds of each variant, and return a line that says where.

    Without matplotlib nothing is drawn, and the line says so.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return "No picture: matplotlib is not installed (pip install matplotlib)."
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(dict.fromkeys(result.variant for result in results)):
        runs = [result for result in results if result.variant == name]
        means = [sum(at) / len(at) for at in zip(*(run.losses for run in runs), strict=True)]
        # Ten colours, then the same ones dashed.
        style = "-" if number < 10 else "--"
        axes.plot(runs[0].steps, means, style, label=f"{name} ({len(runs)})", marker=".")
    axes.axhline(unigram_nats, color="0.6", linestyle=":", label="unigram")
    axes.set(xlabel="optimizer step", ylabel="validation loss, nats", title="Characters, d 128")
    figure.legend(loc="outside right upper", fontsize=8)
    FigureCanvasAgg(figure).print_png(str(path))
    return f"Curves: {path}"
