"""Curves of a training run, from the log it keeps."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..evaluation.evaluators import ACCURACY_BASELINES, METRICS, accuracy_levels

logger = logging.getLogger(__name__)


def plot_training_curves(
    metrics_path: str | Path, path: str | Path, levels: Mapping[str, Mapping[str, float]] | None = None
) -> None:
    """Writes a PNG with the loss and the learning rate over steps, and a panel for each metric of an evaluation.

    Where a run logs them there are panels of the terms of the loss, of the speed, and of where its time goes.

    What the run's accuracies are to be compared with is drawn as a line, chance as a dotted one.

    Args:
        metrics_path: a `metrics.jsonl`: one JSON object a line; training lines have "step", "loss" and perhaps
            "learning_rate", terms `loss_NAME`, "images_per_second" and `NAME_share` of the time, evaluation lines "step" and
            metrics of the evaluators by name; and perhaps a line with `ACCURACY_BASELINES`.
        path: the file to write.
        levels: what else to compare with: for each name, such as "pixels", values of metrics by name.

    Raises:
        ValueError: no line has a loss.
    """
    records = _read_records(Path(metrics_path))
    losses = _series(records, "loss")
    if not losses:
        raise ValueError(f"{metrics_path} has no line with 'step' and 'loss': train for at least one logged step.")
    learning_rates = _series(records, "learning_rate")
    evaluated = {name: series for name in METRICS if (series := _series(records, name))}

    levels = accuracy_levels(records) | dict(levels or {})
    names = list(dict.fromkeys(name for record in records if "loss" in record for name in record))
    groups = {  # of curves that share a panel, by its title and the label of its axis
        ("Terms of the loss", ""): {name.removeprefix("loss_"): name for name in names if name.startswith("loss_")},
        ("Speed", "images a second"): {name: name for name in names if name == "images_per_second"},
        ("Where the time goes besides training", "%"): {
            name.removesuffix("_share").replace("_", " "): name for name in names if name.endswith("_share")
        },
    }
    groups = {title: group for title, group in groups.items() if group}

    count = 1 + len(evaluated) + len(groups)
    columns = min(count, 2)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(6 * columns, 4 * rows), layout="constrained")
    panels = [figure.add_subplot(rows, columns, number) for number in range(1, 1 + count)]
    panels[0].plot(*_points(losses), color="C0", marker=".", markersize=3)
    panels[0].set(title="Training", xlabel="step", ylabel="loss")
    panels[0].yaxis.label.set_color("C0")
    if learning_rates:
        right = panels[0].twinx()
        right.plot(*_points(learning_rates), color="C1", linestyle="--")
        right.set_ylabel("learning rate", color="C1")
        right.ticklabel_format(axis="y", scilimits=(-2, 3))
    for axes, ((title, unit), group) in zip(panels[1 + len(evaluated) :], groups.items(), strict=True):
        for label, name in group.items():
            steps, values = _points(_series(records, name))
            axes.plot(steps, [100 * value for value in values] if unit == "%" else values, label=label)
        axes.set(title=title, xlabel="step", ylabel=unit)
        if unit:
            axes.set_ylim(bottom=0)
        if len(group) > 1:
            axes.legend()
    for axes, (name, series) in zip(panels[1 : 1 + len(evaluated)], evaluated.items(), strict=True):
        metric = METRICS[name]
        steps, values = _points(series)
        axes.plot(steps, [100 * value for value in values] if metric.percent else values, color="C2", marker="o")
        axes.set(title=metric.title, xlabel="step", ylabel="%" if metric.percent else "")
        for number, (label, known) in enumerate(levels.items()):
            if name in known:
                level = 100 * known[name] if metric.percent else known[name]
                style = ":" if label == ACCURACY_BASELINES["chance_accuracy"] else "--"
                axes.axhline(level, label=label, color=f"C{3 + number}", linestyle=style, linewidth=1.5)
        if axes.get_legend_handles_labels()[1]:
            axes.legend()
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, format="png", dpi=100)


def _read_records(path: Path) -> list[dict]:
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            # A run that was killed leaves a torn line behind; it must not cost the resumed run its curves.
            logger.warning("%s, line %d is not JSON and is left out: %.80r", path, number, line)
    return records


def _series(records: list[dict], key: str) -> dict[int, float]:
    """The values of `key` by step; steps that a resumed run logged again count once, with the later value."""
    return {record["step"]: record[key] for record in records if "step" in record and key in record}


def _points(series: dict[int, float]) -> tuple[list[int], list[float]]:
    steps = sorted(series)
    return steps, [series[step] for step in steps]
