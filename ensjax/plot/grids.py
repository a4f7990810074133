"""Pictures and matrices: a grid of examples, and who disagrees with whom."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ensjax.plot.style import (
    ALARM,
    LABEL_SIZE,
    NOTE_SIZE,
    PALE,
    TICK_SIZE,
    new_figure,
)


def image_grid(
    images: np.ndarray,
    *,
    labels: Sequence | None = None,
    predictions: Sequence | None = None,
    numbers: np.ndarray | None = None,
    number_label: str = "MI (nats)",
    columns: int = 6,
    title: str | None = None,
) -> Figure:
    """Images with their label, what was predicted, and one number each.

    A wrong prediction is written "4, said 9", in colour; a right one "4".

    Args:
        images: `[image, height, width]`, or with 1 or 3 channels last. Grey images
            share one scale from their smallest to their largest value.
        labels: true class of each image.
        predictions: predicted class of each image.
        numbers: `[image]`, such as the mutual information.
        number_label: name and unit of the numbers, written once below the grid.
        columns: images side by side.

    Raises:
        ValueError: if there is no image, or a length does not fit.
    """
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim not in (3, 4) or images.shape[0] < 1:
        raise ValueError(
            "images must be [image, height, width] or [image, height, width, 1 or 3];"
            f" got shape {images.shape}."
        )
    for name, values in (
        ("labels", labels),
        ("predictions", predictions),
        ("numbers", numbers),
    ):
        if values is not None and len(values) != len(images):
            raise ValueError(
                f"{name} must hold one value for each of {len(images)} images; got"
                f" {len(values)}."
            )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    side = 6.4 / max(columns, 3)
    has_text = any(v is not None for v in (labels, predictions, numbers))
    fig = new_figure(rows * (side + 0.3 * has_text) + 0.3)
    axes = fig.subplots(rows, columns, squeeze=False)
    low, high = np.nanmin(images), np.nanmax(images)
    for ax in axes.flat:
        ax.axis("off")
    for i, (ax, image) in enumerate(zip(axes.flat, images)):
        ax.imshow(image, cmap="gray_r", vmin=low, vmax=high)
        text, is_wrong = _title(i, labels, predictions, numbers)
        ax.set_title(text, fontsize=NOTE_SIZE, color=ALARM if is_wrong else "black")
    if title:
        fig.suptitle(title, fontsize=LABEL_SIZE, x=0.01, ha="left")
    if numbers is not None:
        fig.supxlabel(f"Below each label: {number_label}", fontsize=TICK_SIZE)
    return fig


def disagreement_matrix(
    matrix: np.ndarray,
    *,
    names: Sequence[str] | None = None,
    label: str = "Rows with different choices (fraction)",
    title: str | None = None,
) -> Figure:
    """A `[member, member]` matrix as colours, with the numbers up to 8 members.

    The diagonal is left grey; colours run from 0 (or the smallest entry, if negative)
    to the largest entry beside the diagonal.

    Args:
        matrix: `[member, member]`, as from `scores.disagreement_matrix`.
        names: one per member; indices if None.
        label: what the colours mean, with the unit.

    Raises:
        ValueError: if `matrix` is not square or the names do not fit.
    """
    matrix = np.array(matrix, float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix must be [member, member]; got shape {matrix.shape}.")
    num_members = len(matrix)
    if names is not None and len(names) != num_members:
        raise ValueError(f"names must hold {num_members} members; got {len(names)}.")
    np.fill_diagonal(matrix, np.nan)
    finite = matrix[np.isfinite(matrix)]
    low, high = min(finite.min(initial=0.0), 0.0), finite.max(initial=0.0)
    high = high if high > low else low + 1.0  # one member, or nobody disagrees

    fig = new_figure(5.2)
    ax = fig.subplots()
    ax.set_facecolor(PALE)
    picture = ax.imshow(matrix, cmap="cividis", vmin=low, vmax=high)
    bar = fig.colorbar(picture, ax=ax, shrink=0.9)
    bar.set_label(label, fontsize=LABEL_SIZE)
    bar.ax.tick_params(labelsize=TICK_SIZE)
    step = -(-num_members // 16)
    ticks = np.arange(0, num_members, step)
    shown = ticks if names is None else [names[i] for i in ticks]
    turned = 45 if names is not None else 0
    ax.set_xticks(ticks, shown, rotation=turned, ha="right" if turned else "center")
    ax.set_yticks(ticks, shown)
    ax.tick_params(labelsize=TICK_SIZE)
    ax.set_xlabel("Member", fontsize=LABEL_SIZE)
    ax.set_ylabel("Member", fontsize=LABEL_SIZE)
    if num_members <= 8:
        for (i, j), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                light = value < (low + high) / 2
                ax.text(
                    j,
                    i,
                    f"{value:.2g}",
                    ha="center",
                    va="center",
                    fontsize=NOTE_SIZE,
                    color="white" if light else "black",
                )
    if title:
        ax.set_title(title, fontsize=LABEL_SIZE, loc="left")
    return fig


def _title(i, labels, predictions, numbers):
    is_wrong = (
        labels is not None
        and predictions is not None
        and str(labels[i]) != str(predictions[i])
    )
    first = "" if labels is None else f"{labels[i]}"
    if predictions is not None and (labels is None or is_wrong):
        first += f"{', ' if first else ''}said {predictions[i]}"
    lines = [first] if first else []
    if numbers is not None:
        lines.append(f"{float(numbers[i]):.3g}")
    return "\n".join(lines), is_wrong
