"""The measures of this package as `evaluate.Metric` classes, which need no network and combine with others.

    from ssl_hub.evaluation.metrics import load_metric

    load_metric("knn_accuracy").compute(
        embeddings=x, references=y, train_embeddings=train_x, train_references=train_y, k=20
    )

A class is thin: the numbers are those of the function that it names. Nothing else in the package imports `evaluate`,
which takes seconds.
"""

from collections.abc import Callable
from difflib import get_close_matches

import datasets
import evaluate
import numpy as np
import torch

from ..modules.clustering import normalized_mutual_information
from .class_scores import average_precision, topk_accuracy
from .clustering import adjusted_rand_index, clustering_accuracy
from .knn import knn_accuracy
from .label_free import embedding_std, rankme
from .retrieval import retrieval_scores
from .spectrum import alignment, alpha_req, lidar, uniformity

_VECTOR = datasets.Sequence(datasets.Value("float32"))
_INPUTS = {
    "embeddings": _VECTOR,
    "other_embeddings": _VECTOR,
    "views": datasets.Sequence(_VECTOR),
    "scores": _VECTOR,
    "references": datasets.Value("int64"),
    "predictions": datasets.Value("int64"),
    "confidences": datasets.Value("float32"),
}


def _knn(embeddings, references, train_embeddings=None, train_references=None, **options) -> float:
    if train_embeddings is None or train_references is None:
        raise ValueError("knn_accuracy needs train_embeddings and train_references: name both in compute().")
    train = _tensor("train_embeddings", train_embeddings).float()
    return knn_accuracy(train, _tensor("train_references", train_references), embeddings, references, **options)


def _tensor(name: str, values) -> torch.Tensor:
    try:
        return torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError):  # an array of objects, or none
        raise ValueError(
            f"{name} must be numbers, as many for every image, and none of them missing: leave out images without."
        ) from None


# name: (the inputs, which `add_batch` takes too, the function of them and of its options)
_METRICS: dict[str, tuple[tuple[str, ...], Callable]] = {
    "knn_accuracy": (("embeddings", "references"), _knn),
    "topk_accuracy": (("scores", "references"), topk_accuracy),
    "embedding_std": (("embeddings",), embedding_std),
    "rankme": (("embeddings",), rankme),
    "alignment": (("embeddings", "other_embeddings"), alignment),
    "uniformity": (("embeddings",), uniformity),
    "alpha_req": (("embeddings",), alpha_req),
    "lidar": (("views",), lidar),
    "nmi": (("predictions", "references"), normalized_mutual_information),
    "ari": (("predictions", "references"), adjusted_rand_index),
    "clustering_accuracy": (("predictions", "references"), clustering_accuracy),
    "retrieval": (("embeddings", "references"), retrieval_scores),
    "average_precision": (("confidences", "references"), average_precision),
}


class FeatureMetric(evaluate.Metric):
    """A function of this package as a metric of `evaluate`. Options of the function go to `compute` by name."""

    inputs: tuple[str, ...]
    function: Callable

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).function.__doc__ or "",
            citation="",
            inputs_description=", ".join(self.inputs),
            features=datasets.Features({name: _INPUTS[name] for name in self.inputs}),
        )

    def compute(self, **arguments) -> dict[str, float] | None:
        """As that of `evaluate.Metric`, with all of the inputs or, after `add_batch`, none."""
        given = [name for name in self.inputs if arguments.get(name) is not None]
        if given and len(given) < len(self.inputs):
            raise ValueError(
                f"{self.name} needs {' and '.join(self.inputs)}; compute() got {' and '.join(given)} only."
            )
        return super().compute(**arguments)

    def _compute(self, **arguments) -> dict[str, float]:
        tensors = [_tensor(name, arguments.pop(name)) for name in self.inputs]
        result = type(self).function(*tensors, **arguments)
        return result if isinstance(result, dict) else {self.name: result}


def load_metric(name: str) -> FeatureMetric:
    """The metric of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in _METRICS:
        near = get_close_matches(name, _METRICS, n=3)
        raise ValueError(
            f"there is no metric {name!r}; {'near it' if near else 'there are'}: {', '.join(near or _METRICS)}"
        )
    inputs, function = _METRICS[name]
    metric_class = type(name, (FeatureMetric,), {"inputs": inputs, "function": staticmethod(function)})
    return metric_class()


def list_metrics() -> list[str]:
    return list(_METRICS)
