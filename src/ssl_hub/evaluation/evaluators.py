"""The evaluations of a run, by the names that recipes and the command line use."""

import importlib
import logging
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches

from .base import EVALUATORS, METRICS, Evaluator, Metric

# A protocol is a file of this package: importing it makes it known. `metrics` imports `evaluate`, which takes seconds.
for _module in pkgutil.iter_modules(importlib.import_module(__package__).__path__):
    if _module.name not in ("evaluators", "metrics"):
        importlib.import_module(f".{_module.name}", __package__)

__all__ = [
    "ACCURACY_BASELINES",
    "DEFAULT_EVALUATION",
    "EVALUATORS",
    "METRICS",
    "Evaluator",
    "Metric",
    "accuracy_levels",
    "build_evaluators",
    "check_metric",
    "describe_metrics",
]

DEFAULT_EVALUATION = [{"type": "knn"}, {"type": "label_free"}]

# What accuracies are shown beside, by the name that logs have: `chance_accuracy` is that of naming the most frequent class.
ACCURACY_BASELINES = {"chance_accuracy": "chance", "pixel_knn_accuracy": "kNN of pixels"}

logger = logging.getLogger(__name__)

_LABELS_ARE = "sort its images into class folders, or name the column of the labels with --label_column_name"


def build_evaluators(
    specs: list[dict] | None,
    *,
    has_eval_labels: bool = True,
    has_train_labels: bool = True,
    has_train_features: bool = True,
    has_train_batches: bool = True,
) -> list[Evaluator]:
    """Builds the evaluators of a recipe's `evaluation` section.

    Args:
        specs: such as `[{"type": "knn", "k": 20}, {"type": "label_free"}]`: protocols, each with its options. A protocol
            can be there once, because its metrics have fixed names. None gives `DEFAULT_EVALUATION`; what of it the data
            does not allow is left out, with a warning.
        has_eval_labels, has_train_labels: whether the evaluation and the training set have labels.
        has_train_features: whether the training images can be evaluated: those of a stream cannot.
        has_train_batches: whether a model is being trained, for the online probe.

    Raises:
        ValueError: an unknown protocol or option, an option out of range, a protocol that is there twice, or one that
            needs what the data does not have.
    """
    allowed = []
    for evaluator in [_build(spec) for spec in _check_specs(DEFAULT_EVALUATION if specs is None else specs)]:
        lacks = None
        if evaluator.input == "scores" and not has_train_batches:
            lacks = "the batches of a pretraining run: name it there, by --evaluation"
        elif (evaluator.needs_train_features or evaluator.needs_train_labels) and not has_train_features:
            lacks = "the training images by index, and they are streamed: load them without --streaming"
        elif evaluator.needs_labels and not has_eval_labels:
            lacks = f"labels, and the evaluation split has none: {_LABELS_ARE}"
        elif evaluator.needs_train_labels and not has_train_labels:
            lacks = f"labels, and the training split has none: {_LABELS_ARE}"
        if lacks is None:
            allowed.append(evaluator)
        elif specs is None:
            logger.warning("left out the evaluation %r, which needs %s", evaluator.type, lacks)
        else:
            raise ValueError(f"the evaluation {evaluator.type!r} needs {lacks}, or leave {evaluator.type!r} out")
    return allowed


def accuracy_levels(records: Iterable[Mapping]) -> dict[str, dict[str, float]]:
    """What the accuracies of a run are to be compared with: by label of a level, its value for each of them.

    Args:
        records: the lines of `metrics.jsonl`.
    """
    known = {name: value for record in records for name, value in record.items()}
    accuracies = [name for name, metric in METRICS.items() if metric.hub_type == "accuracy"]
    return {
        label: dict.fromkeys(accuracies, known[name]) for name, label in ACCURACY_BASELINES.items() if name in known
    }


def check_metric(name: str, evaluators: Iterable[Evaluator] | None = None) -> None:
    """Raises `ValueError` unless there is a metric of this name, and one of the evaluators, if given, computes it."""
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r}; {_near(name, METRICS)}")
    if evaluators is not None:
        computed = [metric for evaluator in evaluators for metric in evaluator.metrics]
        if name not in computed:
            source = next(each.type for each in EVALUATORS.values() if name in each.metrics)
            raise ValueError(
                f"no evaluation of this run computes {name!r}; it has {', '.join(computed) or 'none'}, and {name!r} comes "
                f"with {{type: {source}}}, which --evaluation names"
            )


def describe_metrics(metrics: dict[str, float]) -> str:
    """The values of metrics in words, such as "kNN accuracy 87.65%, RankMe (effective rank) 7.25"."""
    return ", ".join(f"{METRICS[name].title} {METRICS[name].format(value)}" for name, value in metrics.items())


def _check_specs(specs: list[dict]) -> list[dict]:
    is_list = isinstance(specs, list)
    if not is_list or not all(isinstance(spec, dict) and isinstance(spec.get("type"), str) for spec in specs):
        raise ValueError(
            f"evaluation must be a list such as [{{type: knn, k: 20}}, {{type: label_free}}]; got {specs!r}"
        )
    types = [spec["type"] for spec in specs]
    if repeated := sorted({name for name in types if types.count(name) > 1}):
        raise ValueError(
            f"evaluation has {', '.join(repeated)} more than once, and both would log the same metrics: keep one of them"
        )
    return specs


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
    near = get_close_matches(name, names, n=3)
    return f"near it: {', '.join(near)}" if near else f"there is {', '.join(names) or 'none'}"
