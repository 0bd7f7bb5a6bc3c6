"""Weighted k-nearest-neighbour classification of frozen features, the protocol of Wu et al. (arXiv 1805.01978)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..distributed import sum_
from .base import Evaluator, LabelledFeatures, Metric
from .features import check_features, process_rows

# Entries of queries and of the bank that are normalised at a time, whatever the sizes of the sets. On a CPU 64 and 16 MiB
# of float32, of which the latter come and go without new pages; on a GPU 1 GiB and 64 MiB, as all of the bank is sent
# there for each part of the queries.
_MAX_ENTRIES_ON_CPU = (2**24, 2**22)
_MAX_ENTRIES_ON_GPU = (2**28, 2**24)
# Entries of the similarity matrix that are on a GPU at a time: 256 MiB of float32.
_MAX_SIMILARITIES = 2**26


def knn_classify(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Class scores of `features` by a weighted vote of the `k` most similar train features (arXiv 1805.01978).

    Similarity is the dot product of L2-normalised features and a neighbour's vote `exp(similarity / temperature)`.
    A row of scores is divided by its sum: the order of the classes is that of the paper, and small temperatures do not
    overflow.

    Args:
        train_features: `(N, D)`; may be memory-mapped, and larger than memory.
        train_labels: `(N,)`, class indices below `num_classes`.
        features: `(M, D)`, on the device where the work is done.
        k: number of neighbours, at most N.
        temperature: positive; the smaller, the more the nearest neighbours count.

    Returns:
        Scores `(M, num_classes)`, float32; each row sums to 1 and its largest entry is the prediction.

    Raises:
        ValueError: sizes that do not fit, an empty set, features that are not finite, `k`, a label or the temperature
            out of range.
    """
    check_features("test", features)
    _check_bank(train_features, train_labels, features, k)
    similarities, neighbor_labels = _nearest(train_features, train_labels, features, k)
    _check_temperature(temperature)
    if train_labels.max() >= num_classes:
        raise ValueError(f"A train label is {train_labels.max()}, but num_classes={num_classes}.")
    return _vote(similarities, neighbor_labels, num_classes, temperature)


def _check_bank(train_features: Tensor, train_labels: Tensor, features: Tensor, k: int) -> None:
    check_features("train", train_features, train_labels)
    if features.shape[1] != train_features.shape[1]:
        raise ValueError(
            f"Train features have {train_features.shape[1]} dimensions, test features {features.shape[1]}: extract "
            "both with the same model."
        )
    if not 1 <= k <= len(train_features):
        raise ValueError(f"k={k} neighbours of {len(train_features)} train features: choose k in [1, N].")


@torch.no_grad()
def _nearest(train_features: Tensor, train_labels: Tensor, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Similarities `(M, k)` of the nearest train features, in falling order, and their labels."""
    entries = _MAX_ENTRIES_ON_CPU if features.device.type == "cpu" else _MAX_ENTRIES_ON_GPU
    num_queries, rows = (max(1, each // features.shape[1]) for each in entries)
    with _full_float32():
        nearest = [_search(queries, train_features, k, rows) for queries in features.split(num_queries)]
    indices = torch.cat([indices for _, indices in nearest])
    labels = train_labels.to(indices.device, torch.long)[indices]
    return torch.cat([similarities for similarities, _ in nearest]), labels


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32, which a run may allow for its steps: it is too coarse to tell neighbours apart."""
    matmul = torch.backends.cuda.matmul
    precision = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = precision


def _search(queries: Tensor, bank: Tensor, k: int, rows: int) -> tuple[Tensor, Tensor]:
    """Similarities and rows `(M, k)` of the nearest of a bank, in falling order; so many of its rows at a time."""
    queries = normalize(queries.float())
    nearest = queries.new_empty(len(queries), 0)
    neighbors = nearest.long()
    search = _search_on_cpu if queries.device.type == "cpu" else _search_on_gpu
    for start in range(0, len(bank), rows):
        part = normalize(bank[start : start + rows].to(queries.device).float())
        similarities, indices = search(queries, part, min(k, len(part)))
        nearest, order = torch.cat([nearest, similarities], dim=1).sort(dim=1, descending=True, stable=True)
        neighbors = torch.cat([neighbors, indices + start], dim=1).gather(1, order)
        nearest, neighbors = nearest[:, :k], neighbors[:, :k]
    return nearest, neighbors


def _search_on_cpu(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    import faiss  # it takes a while to import

    found = faiss.knn(queries.numpy(), bank.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def _search_on_gpu(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    chunks = queries.split(max(1, _MAX_SIMILARITIES // len(bank)))
    nearest = [(chunk @ bank.T).topk(k) for chunk in chunks]
    return torch.cat([each.values for each in nearest]), torch.cat([each.indices for each in nearest])


def _vote(similarities: Tensor, neighbor_labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    votes = (similarities / temperature).softmax(dim=1)
    return votes.new_zeros(len(votes), num_classes).scatter_add_(1, neighbor_labels, votes)


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Top-1 accuracy, from 0 to 1, of [`knn_classify`] on the test set. The arguments and errors are its own.

    Args:
        test_features: `(M, D)`.
        test_labels: `(M,)`, class indices.
    """
    accuracies = knn_accuracies(train_features, train_labels, test_features, test_labels, [k], [temperature])
    return accuracies[k, temperature]


def knn_accuracies(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperatures: Sequence[float] = (0.07,),
    *,
    shared: bool = False,
) -> dict[tuple[int, float], float]:
    """[`knn_accuracy`] by k and temperature; the neighbours are looked for once. The arguments and errors are its own.

    Args:
        shared: whether the processes share the test images out. Each must then call this, with the same arguments, and
            gets the same accuracies.
    """
    check_features("test", test_features, test_labels)
    if min(ks, default=0) < 1:
        raise ValueError(f"k={min(ks, default='no')} neighbours: choose one k or more in [1, N].")
    for temperature in temperatures:
        _check_temperature(temperature)
    _check_bank(train_features, train_labels, test_features, max(ks))
    rows = process_rows(len(test_features)) if shared else range(len(test_features))
    part = slice(rows.start, rows.stop)
    similarities, labels = _nearest(train_features, train_labels, test_features[part], max(ks))
    num_classes, test_labels = int(train_labels.max()) + 1, test_labels[part].to(labels.device)
    settings = [(k, temperature) for k in ks for temperature in temperatures]
    votes = (_vote(similarities[:, :k], labels[:, :k], num_classes, temperature) for k, temperature in settings)
    correct = torch.stack([(scores.argmax(dim=1) == test_labels).sum() for scores in votes])
    if shared:
        sum_(correct)
    return {setting: count / len(test_features) for setting, count in zip(settings, correct.tolist(), strict=True)}


def _check_temperature(temperature: float) -> None:
    if not (isinstance(temperature, int | float) and 0 < temperature < float("inf")):
        raise ValueError(f"temperature={temperature!r} must be a positive number (the paper uses 0.07).")


@dataclass(frozen=True)
class KNNEvaluator(Evaluator):
    """Logs [`knn_accuracy`] with the training set as the bank.

    Args:
        k: number of neighbours; of a training set with fewer images, all vote.
        temperature: positive.
        max_samples: images of the training set in the bank, a random sample; 0 or None for all of them.
    """

    type: ClassVar[str] = "knn"
    metrics: ClassVar[dict[str, Metric]] = {
        "knn_accuracy": Metric("kNN accuracy", percent=True, hub_type="accuracy"),
    }
    needs_labels: ClassVar[bool] = True
    needs_train_features: ClassVar[bool] = True
    shares_work: ClassVar[bool] = True

    k: int = 20
    temperature: float = 0.07
    max_samples: int | None = None

    def __post_init__(self):
        if type(self.k) is not int or self.k < 1:
            raise ValueError(f"k={self.k!r} of the evaluation 'knn' must be a whole number of at least 1.")
        _check_temperature(self.temperature)
        if self.max_samples is not None and (type(self.max_samples) is not int or self.max_samples < 0):
            raise ValueError(
                f"max_samples={self.max_samples!r} of the evaluation 'knn' (--knn_max_samples) must be a whole number of "
                "at least 0, which stands for all training images."
            )

    @property
    def max_train_samples(self) -> int | None:
        return self.max_samples or None

    def evaluate(self, features: LabelledFeatures, train: LabelledFeatures | None) -> dict[str, float]:
        k = min(self.k, len(train.features))
        bank, bank_labels = train
        accuracies = knn_accuracies(bank, bank_labels, *features, ks=[k], temperatures=[self.temperature], shared=True)
        return {"knn_accuracy": accuracies[k, self.temperature]}
