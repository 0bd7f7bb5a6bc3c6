"""Whether the nearest images show the same class."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .base import Evaluator, LabelledFeatures, Metric
from .features import check_features

# Entries of the similarity matrix held at a time.
_MAX_SIMILARITIES = 2**24


def retrieval_scores(features: Tensor, labels: Tensor, ks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
    """Each image asks for the others of its class, by cosine similarity; an equal similarity counts as a higher one.

    Args:
        features: `(N, D)`.
        labels: `(N,)`. An image that is alone in its class does not ask.
        ks: `recall_at_k` is the share of images with one of their class among the k nearest.

    Returns:
        `mean_average_precision` and, for each k, `recall_at_k`.

    Raises:
        ValueError: features that are not finite, labels that do not fit or are of one class, no class of two images, or
            a k below 1.
    """
    check_features("given", features, labels)
    if min(ks, default=1) < 1:
        raise ValueError(f"recall at {min(ks)}: choose ks of at least 1.")
    classes, sizes = labels.unique(return_counts=True)
    if len(classes) < 2 or sizes.max() < 2:
        raise ValueError(
            f"{len(labels)} images of {len(classes)} classes: retrieval needs two classes or more, one of them with two "
            "images or more."
        )
    unit, labels = normalize(features.float()).cpu(), labels.cpu()
    precisions, first_ranks = [], []
    for label in classes[sizes > 1].tolist():
        members = (labels == label).nonzero().flatten()
        for rows in members.split(max(1, _MAX_SIMILARITIES // len(unit))):
            similarities = unit[rows] @ unit.T
            similarities[torch.arange(len(rows)), rows] = float("-inf")  # itself comes last
            relevant = similarities[:, members].sort(dim=1).values[:, 1:].contiguous()
            similarities.numpy().sort(axis=1)  # several times as fast as torch, which finds the order, too
            ranks = len(unit) - torch.searchsorted(similarities, relevant)
            relevant_ranks = len(members) - 1 - torch.searchsorted(relevant, relevant)
            precisions.append((relevant_ranks / ranks).mean(dim=1))
            first_ranks.append(ranks[:, -1])
    ranks = torch.cat(first_ranks)
    scores = {"mean_average_precision": torch.cat(precisions).mean().item()}
    return scores | {f"recall_at_{k}": (ranks <= k).float().mean().item() for k in ks}


class RetrievalEvaluator(Evaluator):
    """Logs [`retrieval_scores`] of the evaluation set."""

    type: ClassVar[str] = "retrieval"
    metrics: ClassVar[dict[str, Metric]] = {
        "retrieval_map": Metric("retrieval mAP", percent=True),
        "retrieval_recall_at_1": Metric("retrieval recall at 1", percent=True),
        "retrieval_recall_at_5": Metric("retrieval recall at 5", percent=True),
    }
    needs_labels: ClassVar[bool] = True
    needs_train_features: ClassVar[bool] = False

    def evaluate(self, features: LabelledFeatures, train: LabelledFeatures | None) -> dict[str, float]:
        scores = retrieval_scores(features.features, features.labels)
        names = {"mean_average_precision": "retrieval_map"}
        return {names.get(name, f"retrieval_{name}"): value for name, value in scores.items()}
