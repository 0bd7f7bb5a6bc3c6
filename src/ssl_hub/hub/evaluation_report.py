"""The report of an evaluation of one or several models: Markdown, one self-contained page, and numbers as JSON."""

import html
import json
from dataclasses import dataclass, field
from pathlib import Path

from ..evaluation.evaluators import METRICS
from .pages import metric_rows, render_page


@dataclass
class ModelReport:
    """What an evaluation found about one model.

    Args:
        name: what the report calls it.
        metrics: the values of the evaluators' metrics, by name.
        pictures: PNG files by caption.
        notes: what a reader should be told besides, such as an evaluator's warning.
    """

    name: str
    metrics: dict[str, float]
    pictures: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class EvaluationReport:
    """An evaluation of models on one dataset.

    Args:
        settings: what it was made of, for the reader, such as the dataset and the numbers of images.
        models: in the order of the report, baselines included.
        chance: by metric what guessing would reach.
        chart: a PNG that compares the models.
        correlations: Spearman's, of each metric with the kNN accuracy over the models.
    """

    settings: dict[str, str]
    models: list[ModelReport]
    chance: dict[str, float] = field(default_factory=dict)
    chart: Path | None = None
    correlations: dict[str, float] = field(default_factory=dict)

    def write(self, output_dir: str | Path) -> None:
        """Writes `report.md`, `report.html` and `results.json`. Pictures are inside the page, and linked from the text.

        Raises:
            ValueError: two models have the same name.
        """
        names = [model.name for model in self.models]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"there are several models called {', '.join(sorted(repeated))}: give each once")
        output_dir = Path(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "report.md").write_text(self._markdown(output_dir), encoding="utf-8")
        (output_dir / "report.html").write_text(self._html(), encoding="utf-8")
        results = {
            "settings": self.settings,
            "chance": self.chance,
            "correlations": self.correlations,
            "models": {model.name: model.metrics for model in self.models},
        }
        (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    def _rows(self) -> list[dict]:
        return metric_rows([model.metrics for model in self.models], [self.chance] if self.chance else [])

    def _correlation_rows(self) -> list[tuple[str, str]]:
        return [(METRICS[name].shown_title, f"{value:.2f}") for name, value in self.correlations.items()]

    def _markdown(self, output_dir: Path) -> str:
        settings = [f"* {_escaped(name)}: {_escaped(value)}" for name, value in self.settings.items()]
        header = ["metric", *(_escaped(model.name) for model in self.models), *(["chance"] if self.chance else [])]
        lines = [header, ["---"] * len(header)]
        for row in self._rows():
            cells = [f"**{cell['text']}**" if cell["is_best"] else cell["text"] for cell in row["cells"]]
            lines.append([row["title"], *cells, *row["levels"]])
        table = ["| " + " | ".join(line) + " |" for line in lines]
        parts = ["# Evaluation", "\n".join(settings), "## Results", "\n".join(table)]
        if self.chart is not None:
            parts.append(_picture("comparison of the models", self.chart, output_dir))
        if self.correlations:
            lines = ["| metric | Spearman |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in self._correlation_rows())]
            parts += ["## Rank correlation with kNN accuracy, over the models", "\n".join(lines)]
        for model in self.models:
            if model.pictures or model.notes:
                parts.append(f"## {_escaped(model.name)}")
                parts += [f"> {_escaped(note)}" for note in model.notes]
                for caption, file in model.pictures.items():
                    parts += [f"### {_escaped(caption)}", _picture(caption, file, output_dir)]
        return "\n\n".join(parts) + "\n"

    def _html(self) -> str:
        return render_page(
            "evaluation_report.html",
            report=self,
            rows=self._rows(),
            levels=["chance"] if self.chance else [],
            correlations=self._correlation_rows(),
        )


def _picture(caption: str, file: Path, output_dir: Path) -> str:
    return f"![{_escaped(caption)}]({file.relative_to(output_dir).as_posix()})"


def _escaped(text: str) -> str:
    """Text without a meaning in Markdown: names come from users."""
    text = html.escape(" ".join(text.split()), quote=False)
    for mark in "\\`*_[]|":
        text = text.replace(mark, f"\\{mark}")
    return text
