"""Pages for a browser that are one file: the templates beside this one, which look alike."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..evaluation.evaluators import METRICS


def render_page(template: str, **values: object) -> str:
    """Fills in a template of this folder. All text is escaped, and pictures become a part of the page."""
    environment = Environment(
        loader=PackageLoader("ssl_hub.hub", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["data_uri"] = _data_uri
    return environment.get_template(template).render(**values)


def _data_uri(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(Path(file).read_bytes()).decode()}"


def metric_rows(columns: Sequence[Mapping[str, float]], levels: Sequence[Mapping[str, float]] = ()) -> list[dict]:
    """The rows of a table of results: of each metric that a column has, the value in every column, and if it is the best.

    Args:
        columns: values of metrics by name.
        levels: what they are to be compared with, alike.
    """
    rows = []
    for name, metric in METRICS.items():
        values = [column.get(name) for column in columns]
        known = [value for value in values if value is not None]
        if known:
            best = max(known, key=metric.goodness)
            cells = [
                {"text": "" if value is None else metric.format(value), "is_best": value == best and len(known) > 1}
                for value in values
            ]
            shown = [metric.format(level[name]) if name in level else "" for level in levels]
            rows.append({"title": metric.shown_title, "cells": cells, "levels": shown})
    return rows
