"""Pictures of the numbers of an evaluation."""

import os
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ..evaluation.evaluators import METRICS

_DPI = 100
# Beyond this number of classes neither names nor numbers could be read.
_MAX_NAMED_CLASSES = 30


def plot_confusion_matrix(
    labels: Tensor,
    predictions: Tensor,
    path: str | os.PathLike,
    *,
    class_names: Sequence[str] | None = None,
    title: str = "",
) -> None:
    """Writes a PNG of the confusion matrix: a row for each true class, with percentages of that class's images.

    Args:
        labels, predictions: `(N,)`, class indices.
        path: the file to write.
        class_names: by class index.

    Raises:
        ValueError: sizes that do not fit, or no image.
    """
    if labels.shape != predictions.shape or labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"There are labels {tuple(labels.shape)} and predictions {tuple(predictions.shape)}.")
    from sklearn.metrics import confusion_matrix  # scikit-learn takes a second to import

    count = len(class_names) if class_names is not None else int(max(labels.max(), predictions.max())) + 1
    shares = confusion_matrix(labels.cpu(), predictions.cpu(), labels=np.arange(count), normalize="true")
    side = min(12.0, max(4.5, 0.55 * count + 2))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    if count > _MAX_NAMED_CLASSES:
        figure.savefig(path, format="png", dpi=_DPI)
        return
    names = [str(i) for i in range(count)] if class_names is None else [_shortened(name) for name in class_names]
    axes.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(count), names, parse_math=False)
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:  # what would read 0 is left blank
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color, fontsize=8)
    figure.savefig(path, format="png", dpi=_DPI)


def plot_comparison(
    results: Mapping[str, Mapping[str, float]], path: str | os.PathLike, *, chance: Mapping[str, float] | None = None
) -> None:
    """Writes a PNG with a panel for each metric and a bar for each model.

    Args:
        results: by model the values of metrics, by name; a model may lack some.
        path: the file to write.
        chance: by metric what guessing would reach, drawn as a line.

    Raises:
        ValueError: no model, or none has a known metric.
    """
    names = [name for name in dict.fromkeys(name for values in results.values() for name in values) if name in METRICS]
    if not names:
        raise ValueError("there is no result to draw: run at least one protocol, on two images or more")
    models = list(results)
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.4 * columns, rows * (1.1 + 0.42 * len(models))), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for number, axes in enumerate(panels.flat):
        if number >= len(names):
            axes.set_axis_off()
            continue
        name = names[number]
        metric, factor = METRICS[name], 100 if METRICS[name].percent else 1
        values = [factor * results[model].get(name, np.nan) for model in models]
        bars = axes.barh(range(len(models)), values, color=[f"C{i % 10}" for i in range(len(models))], height=0.7)
        texts = [metric.format(results[model][name]) if name in results[model] else "" for model in models]
        axes.bar_label(bars, texts, padding=3, fontsize=9)
        if chance and name in chance:
            axes.axvline(factor * chance[name], color="black", linestyle="--", linewidth=1)
            axes.text(factor * chance[name], -0.75, " chance", fontsize=8, va="center")
        labels = [_shortened(model) for model in models] if number % columns == 0 else [""] * len(models)
        axes.set_yticks(range(len(models)), labels, parse_math=False)
        axes.set_ylim(len(models) - 0.4, -1.0)
        axes.margins(x=0.22)
        title = metric.shown_title
        axes.set_title(textwrap.fill(title, 40), fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=_DPI)


def _shortened(name: str, length: int = 24) -> str:
    return name if len(name) <= length else f"...{name[3 - length :]}"
