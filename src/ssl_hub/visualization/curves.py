"""Curves of a training run, from the log it keeps."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..evaluation.evaluators import ACCURACY_BASELINES, METRICS

logger = logging.getLogger(__name__)


def plot_training_curves(
    metrics_path: str | Path, path: str | Path, levels: Mapping[str, Mapping[str, float]] | None = None
) -> None:
    """Writes a PNG with the loss and the learning rate over steps, and a panel for each metric of an evaluation.

    What the run's accuracies are to be compared with is drawn as a line, chance as a dotted one.

    Args:
        metrics_path: a `metrics.jsonl`: one JSON object a line; training lines have "step", "loss" and perhaps
            "learning_rate", evaluation lines "step" and metrics of the evaluators by name; and perhaps a line with
            `ACCURACY_BASELINES`.
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

    accuracies = [name for name in evaluated if METRICS[name].hub_type == "accuracy"]
    levels = {
        label: dict.fromkeys(accuracies, *_series(records, name).values())
        for name, label in ACCURACY_BASELINES.items()
        if _series(records, name)
    } | dict(levels or {})

    columns = 2 if evaluated else 1
    rows = math.ceil((1 + len(evaluated)) / columns)
    figure = Figure(figsize=(6 * columns, 4 * rows), layout="constrained")
    panels = [figure.add_subplot(rows, columns, number) for number in range(1, 2 + len(evaluated))]
    panels[0].plot(*_points(losses), color="C0", marker=".", markersize=3)
    panels[0].set(title="Training", xlabel="step", ylabel="loss")
    panels[0].yaxis.label.set_color("C0")
    if learning_rates:
        right = panels[0].twinx()
        right.plot(*_points(learning_rates), color="C1", linestyle="--")
        right.set_ylabel("learning rate", color="C1")
        right.ticklabel_format(axis="y", scilimits=(-2, 3))
    for axes, (name, series) in zip(panels[1:], evaluated.items(), strict=True):
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
