"""Pictures of studies, drawn by matplotlib without a display; PNG bytes in a `result.Figure`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hz_runtime.errors import UsageError
from hz_train.studies.result import Column, Figure, Prediction, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

DOTS_PER_INCH = 110
COLOURS = ("#0b66c3", "#d1660b", "#2a8a4a", "#9b3fb5", "#b3261e", "#5b6470", "#8a6d00", "#0a8f8f")


def canvas(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Canvas, Any]:
    """A figure of `rows` x `columns` axes, each `width` x `height` inches: (figure, axes as a 2D array).

    Not pyplot's: nothing is registered globally, and no display is looked for.
    Raises UsageError where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise UsageError("matplotlib is not installed.", "pip install 'hz-mri[evaluate]'") from error
    figure = Canvas(figsize=(columns * width, rows * height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def picture(figure: Canvas, name: str, title: str, caption: str) -> Figure:
    """A drawn figure as PNG; the same drawing gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return Figure(name, title, caption, stream.getvalue())


def site_colours(sites: Sequence[str]) -> dict[str, str]:
    """A colour for each site, in the order given."""
    return {site: COLOURS[k % len(COLOURS)] for k, site in enumerate(sites)}


def scatter(panels: Mapping[str, Sequence[Prediction]], sites: Sequence[str], caption: str) -> Figure:
    """Predicted against real age, one panel a method, one colour a site; Figure 2 of Bashyam 2020.

    All panels share their axes, so that a shift of a whole site is seen as one. The axes end half a range of
    ages beyond the youngest and the oldest; predictions further out are crosses on the frame.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = canvas(rows, columns, 3.6, 3.5, sharex=True, sharey=True)
    colours = site_colours(sites)
    truths = [p.truth for panel in panels.values() for p in panel]
    beyond = max((max(truths) - min(truths)) / 2, 10)
    low, high = min(truths) - beyond, max(truths) + beyond
    _hide(axes, len(panels))
    for axis, (title, panel) in zip(axes.flat, panels.items(), strict=False):
        axis.plot([low, high], [low, high], color="#9aa2ad", linewidth=1, linestyle="--", zorder=1)
        for site in sites:
            those = [p for p in panel if p.site == site]
            inside = [p for p in those if low <= p.predicted <= high]
            ages = [p.truth for p in inside], [p.predicted for p in inside]
            axis.scatter(*ages, s=18, color=colours[site], alpha=0.75, linewidths=0, label=site, zorder=2)
            outside = [p for p in those if not low <= p.predicted <= high]
            edge = [min(max(p.predicted, low), high) for p in outside]
            crosses = {"s": 40, "marker": "x", "color": colours[site], "clip_on": False}
            axis.scatter([p.truth for p in outside], edge, **crosses)
        axis.set(title=title, xlim=(low, high), ylim=(low, high), aspect="equal")
        axis.title.set_fontsize(10)
    figure.supxlabel("real age, years", fontsize=10)
    figure.supylabel("predicted age, years", fontsize=10)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(5, len(labels)), frameon=False)
    return picture(figure, "scatter", "Predicted against real age", caption)


def intervals(
    rows: Sequence[Row], column: Column, name: str, title: str, caption: str, panel: str = "site"
) -> Figure | None:
    """One metric of every method as a dot with its interval; None where no row has it.

    panel : what each panel is of, "site" or the name of one of the rows' `columns`.
    A row that summarises seeds shows their range in place of an interval.
    """
    panels: dict[str, list[Row]] = {}
    for row in chosen(rows):
        if row.metrics.get(column.name) and row.metrics[column.name].value is not None:
            panels.setdefault(row.site if panel == "site" else row.columns[panel], []).append(row)
    if not panels:
        return None
    labels = list(dict.fromkeys(row.method for those in panels.values() for row in those))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    # The names of the methods stand once, beside the first panel of a line.
    width, height = 2.4 + 2.6 / columns, 0.7 + 0.26 * len(labels)
    figure, axes = canvas(lines, columns, width, height, sharex=True, sharey=True)
    _hide(axes, len(panels))
    for axis, (place, those) in zip(axes.flat, panels.items(), strict=False):
        for row in those:
            _dot(axis, row, column, labels)
        axis.set_title(place, fontsize=10)
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
        axis.grid(axis="x", color="#d5dae1", linewidth=0.6)
        axis.set_axisbelow(True)
    axes.flat[0].invert_yaxis()
    better = f" ({column.better} is better)" if column.better else ""
    figure.supxlabel(f"{column.title}{', ' + column.unit if column.unit else ''}{better}", fontsize=10)
    return picture(figure, name, title, caption)


def _hide(axes: Any, used: int) -> None:
    """Take away the axes behind the first `used`; those above them get the numbers they had."""
    columns = axes.shape[1]
    for number, axis in enumerate(axes.flat):
        if number >= used:
            axis.set_visible(False)
            axes.flat[number - columns].tick_params(labelbottom=True)


def _dot(axis: Any, row: Row, column: Column, labels: Sequence[str]) -> None:
    metric = row.metrics[column.name]
    at = labels.index(row.method)
    ends = metric.range or metric.ci95
    colour = COLOURS[0] if "CycleGAN" in row.method else COLOURS[5]
    if ends:
        axis.plot(ends, [at, at], color=colour, linewidth=1.6, alpha=0.7)
    axis.plot([metric.value], [at], marker="o", markersize=5, color=colour)


def chosen(rows: Sequence[Row]) -> list[Row]:
    """Of every method and site the row that summarises its seeds, or the only one."""
    several = {_identity(r) for r in rows if r.seed is None}
    return [r for r in rows if r.seed is None or _identity(r) not in several]


def _identity(row: Row) -> tuple[object, ...]:
    return (row.method, row.site, *sorted(row.columns.items()))
