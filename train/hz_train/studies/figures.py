"""The pictures of the appearance and audit studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hz_train.studies.charts import canvas, chosen, picture, site_colours
from hz_train.studies.result import Figure, Row

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

SOFT = "#9aa2ad"
MARKS = ("o", "s", "D", "^", "v")


def _legend(figure: Any, axis: Any, columns: int = 4) -> None:
    handles, labels = axis.get_legend_handles_labels()
    columns = min(columns, max(1, len(labels)))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)


def _named(site: str, reference: str) -> str:
    return f"{site} (reference)" if site == reference != "reference" else site


def _folded(method: str) -> str:
    return method.replace(", ", ",\n")


def histograms(
    shares: Mapping[str, Sequence[F64]],
    places: Sequence[str],
    sites: Sequence[str],
    names: Sequence[str],
    reference: str,
) -> Figure:
    """Intensity histograms, one row a method and one column a tissue; Figure 1 of Bashyam 2020.

    shares : by method, for each place (n, bins) shares of a scan's voxels over [0, 1]; nan rows are left out.
    Each line is the mean over a site's scans, its band their 10th to 90th percentile.
    """
    figure, axes = canvas(len(shares), len(places), 2.5, 1.75, sharex=True, sharey="col")
    colours = site_colours(names)
    for row, (method, columns) in enumerate(shares.items()):
        for axis, place, values in zip(axes[row], places, columns, strict=True):
            density = values * values.shape[1]  # share a bin to percent a hundredth
            centres = (np.arange(values.shape[1]) + 0.5) / values.shape[1]
            for name in names:
                those = density[[s == name for s in sites]]
                those = those[np.isfinite(those[:, 0])]
                if not len(those):
                    continue
                low, high = np.percentile(those, [10, 90], axis=0)
                axis.fill_between(centres, low, high, color=colours[name], alpha=0.18, linewidth=0)
                axis.plot(
                    centres,
                    those.mean(axis=0),
                    color=colours[name],
                    linewidth=1.3,
                    label=_named(name, reference),
                )
            axis.set(xlim=(0, 1), xticks=(0, 0.5, 1))
            axis.tick_params(labelsize=8)
            if row == 0:
                axis.set_title(place, fontsize=10)
        axes[row, 0].set_ylabel(_folded(method), fontsize=9)
    for axis in axes[0]:
        axis.set_ylim(bottom=0)  # shared along the column, and only once all its lines are there
    figure.supxlabel("intensity in model space, [0, 1]", fontsize=10)
    figure.supylabel("voxels, % per 0.01 of intensity", fontsize=10)
    _legend(figure, axes[0, 0])
    return picture(
        figure,
        "histograms",
        "Intensity histograms by tissue and site",
        "As Figure 1 of Bashyam et al. 2020. Mean over the held-out scans of a site, with the band that "
        "holds 80 % of them; tissues are those of the raw scan in every row.",
    )


def maps(
    found: Mapping[str, tuple[F32, F32]],
    names: Sequence[str],
    brain: Mask,
    reference: str,
    mirrored: Sequence[int] = (),
) -> Figure:
    """Voxelwise mean and sd maps in the middle axial slice, one row a site; Figure 1 of Bashyam 2020.

    found : by method, (mean, sd), each (sites, D, H, W).  brain : (D, H, W), what is shown.
    mirrored : the grid's axes that run the other way than RAS (`Recipe.mirrored`).
    """
    cut = _middle(brain)
    seen = brain[:, :, cut]
    columns = [(method, "mean", mean) for method, (mean, _) in found.items()]
    columns += [(method, "sd", sd) for method, (_, sd) in found.items()]
    top = {
        what: max(float(np.percentile(m[..., cut][:, seen], 99.5)) for _, w, m in columns if w == what)
        for what in ("mean", "sd")
    }
    height = 1.75 * brain.shape[1] / brain.shape[0]
    figure, axes = canvas(len(names), len(columns), 1.75, height)
    shown: dict[str, Any] = {}
    for row, name in enumerate(names):
        for axis, (method, what, volumes) in zip(axes[row], columns, strict=True):
            image = _upright(np.where(seen, volumes[row, :, :, cut], 0), mirrored)
            shade = "gray" if what == "mean" else "inferno"
            shown[what] = axis.imshow(image, cmap=shade, vmin=0, vmax=top[what], interpolation="bilinear")
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if row == 0:
                axis.set_title(f"{what}\n{_folded(method)}", fontsize=9)
        axes[row, 0].set_ylabel(_named(name, reference).replace(" ", "\n"), fontsize=9)
    half = len(found)
    for what, part in (("mean", axes[:, :half]), ("sd", axes[:, half:])):
        bar = figure.colorbar(shown[what], ax=list(part.flat), location="bottom", shrink=0.7, aspect=30)
        bar.set_label(f"{what} intensity, units of [0, 1]", fontsize=9)
        bar.ax.tick_params(labelsize=8)
    return picture(
        figure,
        "maps",
        "Mean and standard deviation maps by site",
        "As Figure 1 of Bashyam et al. 2020: voxelwise over the held-out scans of a site, middle axial "
        "slice, the subject's right on the right.",
    )


def _upright(cut: NDArray[Any], mirrored: Sequence[int]) -> NDArray[Any]:
    """An axial slice (D, H) as a picture: anterior up, the subject's right on the right."""
    return np.flip(cut.T[::-1], tuple(1 - axis for axis in mirrored if axis < 2))


def _middle(brain: Mask) -> int:
    """The axial slice through the middle of the brain."""
    slices = np.flatnonzero(brain.any(axis=(0, 1)))
    return int(slices[len(slices) // 2]) if slices.size else brain.shape[2] // 2


def embeddings(
    points: Mapping[str, F64], sites: Sequence[str], names: Sequence[str], reference: str, seed: int
) -> Figure:
    """t-SNE maps, one panel a method; Figure 2 of Komandur 2023.

    points : by method, (n, 2).
    """
    columns = min(3, len(points))
    figure, axes = canvas(-(-len(points) // columns), columns, 2.9, 2.9)
    colours = site_colours(names)
    for axis in axes.flat[len(points) :]:
        axis.set_visible(False)
    for axis, (method, at) in zip(axes.flat, points.items(), strict=False):
        for name in names:
            those = at[[s == name for s in sites]]
            axis.scatter(
                those[:, 0],
                those[:, 1],
                s=20,
                color=colours[name],
                alpha=0.8,
                linewidths=0,
                label=_named(name, reference),
            )
        axis.set_title(method, fontsize=10)
        axis.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
        axis.margins(0.08)
    _legend(figure, axes.flat[0])
    return picture(
        figure,
        "tsne",
        "t-SNE of 8 x 8 x 8 volumes",
        f"As Figure 2 of Komandur et al. 2023: held-out scans, seed {seed}, each method by itself. For the "
        "eye only: distances in such a map have no unit, and those of two maps cannot be compared; the "
        "overlap table has the numbers.",
    )


def accuracies(
    rows: Sequence[Row], classifiers: Mapping[str, str], chance: float, colours: Mapping[str, str]
) -> Figure | None:
    """How well each classifier tells the sites after each method; None where no row has numbers.

    rows : one place's.  classifiers, colours : by metric, its name and colour.  chance : balanced accuracy of
    an answer that does not look.
    """
    rows = [r for r in chosen(rows) if r.metrics]
    methods = list(dict.fromkeys(r.method for r in rows))
    if not methods:
        return None
    figure, axes = canvas(1, 1, 7.6, 0.9 + 0.52 * len(methods))
    axis = axes[0, 0]
    axis.axvline(chance, color=SOFT, linestyle="--", linewidth=1, label=f"chance, {chance:.2f}", zorder=1)
    step = 0.72 / max(1, len(classifiers))
    for place, (metric, title) in enumerate(classifiers.items()):
        label: str | None = title
        for row in rows:
            found = row.metrics.get(metric)
            if found is None or found.value is None:
                continue
            y = methods.index(row.method) + (place - (len(classifiers) - 1) / 2) * step
            ends = found.range or found.ci95
            if ends:
                axis.plot(ends, [y, y], color=colours[metric], linewidth=1.3, alpha=0.7, zorder=2)
            axis.plot(
                [found.value],
                [y],
                marker=MARKS[place % len(MARKS)],
                markersize=5,
                color=colours[metric],
                linestyle="none",
                label=label,
                zorder=3,
            )
            label = None
    for line in range(1, len(methods)):
        axis.axhline(line - 0.5, color="#e4e8ed", linewidth=0.8, zorder=0)
    axis.set_yticks(range(len(methods)), methods, fontsize=9)
    axis.set(
        xlim=(-0.02, 1.02), ylim=(len(methods) - 0.5, -0.5), xlabel="balanced accuracy of naming the site"
    )
    _legend(figure, axis, 3)
    return picture(
        figure,
        "site_accuracy",
        "Can the site still be told?",
        "Held-out subjects, 95 % intervals over subjects (or the range over seeds). A frozen classifier "
        "learned on raw scans and can be fooled by any change of intensity; the others learned on what the "
        "method made.",
    )


def examples(
    columns: Mapping[str, F32],
    names: Sequence[str],
    white: Mask,
    brain: Mask,
    mirrored: Sequence[int] = (),
) -> Figure:
    """One held-out scan of each site, one column a method, with the raw scan's white matter outlined.

    columns : by method, (sites, D, H, W).  white : (sites, D, H, W) white matter of the raw scans.
    brain : (D, H, W), which decides the slice.  mirrored : as of `maps`.
    """
    cut = _middle(brain)
    width = 1.9
    figure, axes = canvas(len(names), len(columns), width, width * brain.shape[1] / brain.shape[0])
    for row, name in enumerate(names):
        outline = _upright(white[row, :, :, cut], mirrored)
        for axis, (method, volumes) in zip(axes[row], columns.items(), strict=True):
            image = _upright(volumes[row, :, :, cut], mirrored)
            axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
            if outline.any() and not outline.all():
                axis.contour(outline, levels=[0.5], colors="#e8a13a", linewidths=0.7)
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if row == 0:
                axis.set_title(_folded(method), fontsize=9)
        axes[row, 0].set_ylabel(name, fontsize=9)
    return picture(
        figure,
        "examples",
        "One held-out scan of each site",
        "Middle axial slice, black 0 and white 1, the subject's right on the right. The line is the outline "
        "of white matter in the raw scan: anatomy that was kept stays on it.",
    )
