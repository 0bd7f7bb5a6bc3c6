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
from .clustering import adjusted_rand_index, clustering_accuracy
from .knn import knn_accuracy
from .label_free import embedding_std, rankme
from .retrieval import retrieval_scores
from .spectrum import alignment, alpha_req, lidar, uniformity
from .svm import average_precision

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


def topk_accuracy(scores: torch.Tensor, references: torch.Tensor, k: int = 1) -> float:
    """The share of rows of scores `(N, C)` with the true class among the k highest.

    Raises:
        ValueError: k is not from 1 to C.
    """
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k={k} of {scores.shape[1]} classes: choose k from 1 to the number of classes.")
    return (scores.topk(k, dim=1).indices == references[:, None]).any(dim=1).float().mean().item()


def _knn(embeddings, references, train_embeddings, train_references, **options) -> float:
    train = torch.as_tensor(np.asarray(train_embeddings), dtype=torch.float32)
    return knn_accuracy(train, torch.as_tensor(np.asarray(train_references)), embeddings, references, **options)


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

    def _compute(self, **arguments) -> dict[str, float]:
        tensors = [torch.as_tensor(np.asarray(arguments.pop(name))) for name in self.inputs]
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
