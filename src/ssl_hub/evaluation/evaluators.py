"""The evaluations of a run, by the names that recipes and the command line use."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING

from .base import EVALUATORS, METRICS, Evaluator, LabelledFeatures, Metric

if TYPE_CHECKING:
    import datasets

# A protocol is a file of this package: importing it makes it known.
for _module in pkgutil.iter_modules(importlib.import_module(__package__).__path__):
    if f"{__package__}.{_module.name}" != __name__:
        importlib.import_module(f".{_module.name}", __package__)

__all__ = [
    "DEFAULT_EVALUATION",
    "EVALUATORS",
    "METRICS",
    "Evaluator",
    "LabelledFeatures",
    "Metric",
    "build_evaluators",
    "check_evaluators",
    "default_evaluation",
    "describe_metrics",
]

DEFAULT_EVALUATION = [{"type": "knn"}, {"type": "label_free"}]

logger = logging.getLogger(__name__)


def build_evaluators(specs: list[dict]) -> list[Evaluator]:
    """Builds the evaluators of a recipe's `evaluation` section.

    Args:
        specs: such as `[{"type": "knn", "k": 20}, {"type": "label_free"}]`: protocols, each with its options. A protocol
            can be there once, because its metrics have fixed names.

    Raises:
        ValueError: an unknown protocol or option, an option out of range, or a protocol that is there twice.
    """
    if not isinstance(specs, list) or not all(
        isinstance(spec, dict) and isinstance(spec.get("type"), str) for spec in specs
    ):
        raise ValueError(
            f"evaluation must be a list such as [{{type: knn, k: 20}}, {{type: label_free}}]; got {specs!r}"
        )
    types = [spec["type"] for spec in specs]
    if repeated := sorted({name for name in types if types.count(name) > 1}):
        raise ValueError(
            f"evaluation has {', '.join(repeated)} more than once, and both would log the same metrics: keep one of them"
        )
    return [_build(spec) for spec in specs]


def check_evaluators(
    evaluators: list[Evaluator],
    train_dataset: datasets.Dataset | datasets.IterableDataset,
    eval_dataset: datasets.Dataset,
) -> None:
    """Raises a ValueError if an evaluator needs what the datasets, as `load_image_dataset` returns them, do not have."""
    for evaluator in evaluators:
        if lacks := _what_lacks(evaluator, train_dataset, eval_dataset):
            raise ValueError(f"the evaluation {evaluator.type!r} needs {lacks}, or leave {evaluator.type!r} out")


def default_evaluation(
    train_dataset: datasets.Dataset | datasets.IterableDataset, eval_dataset: datasets.Dataset | None
) -> list[dict]:
    """`DEFAULT_EVALUATION` without what needs labels or images that the datasets do not have, which a warning names."""
    specs = []
    for spec in DEFAULT_EVALUATION:
        lacks = eval_dataset is not None and _what_lacks(_build(spec), train_dataset, eval_dataset)
        if lacks:
            logger.warning("left out the evaluation %r, which needs %s", spec["type"], lacks)
        else:
            specs.append(spec)
    return specs


def describe_metrics(metrics: dict[str, float]) -> str:
    """The values of metrics in words, such as "kNN accuracy 87.65%, RankMe (effective rank) 7.25"."""
    return ", ".join(f"{METRICS[name].title} {METRICS[name].format(value)}" for name, value in metrics.items())


def _what_lacks(evaluator: Evaluator, train_dataset, eval_dataset) -> str | None:
    if evaluator.needs_train_features and not hasattr(train_dataset, "__len__"):
        return "the training images by index, and they are streamed: load them without --streaming"
    splits = {"evaluation": eval_dataset} | ({"training": train_dataset} if evaluator.needs_train_features else {})
    for name, dataset in splits.items():
        if evaluator.needs_labels and "label" not in dataset.column_names:
            return (
                f"labels, and the {name} split has none; its columns are {', '.join(dataset.column_names)}: name the one "
                "with the labels with --label_column_name"
            )
    return None


def _build(spec: dict) -> Evaluator:
    if spec["type"] not in EVALUATORS:
        raise ValueError(f"there is no evaluation {spec['type']!r}; {_near(spec['type'], EVALUATORS)}")
    evaluator_class = EVALUATORS[spec["type"]]
    options = {name: value for name, value in spec.items() if name != "type"}
    names = [field.name for field in fields(evaluator_class)]
    for name in options:
        if name not in names:
            raise ValueError(f"the evaluation {spec['type']!r} has no option {name!r}; {_near(name, names)}")
    return evaluator_class(**options)


def _near(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(str(name), names, n=3)
    return f"near it: {', '.join(near)}" if near else f"there is {', '.join(names) or 'none'}"
