"""Whether clusters of features are classes."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..modules.clustering import all_cores, kmeans, normalized_mutual_information
from .base import Evaluator, LabelledFeatures, Metric
from .features import check_features


def clustering_accuracy(clusters: Tensor, labels: Tensor) -> float:
    """The share of images in a cluster of their class, with clusters and classes matched one to one as is best.

    Args:
        clusters, labels: `(N,)`, integers of at least 0. Where there are more clusters than classes, some match none.
    """
    from scipy.optimize import linear_sum_assignment  # it takes a while to import

    _check_labellings(clusters, labels)
    clusters, labels = (each.cpu().unique(return_inverse=True)[1] for each in (clusters, labels))
    counts = torch.zeros(int(clusters.max()) + 1, int(labels.max()) + 1, dtype=torch.long)
    counts.index_put_((clusters, labels), torch.ones(len(labels), dtype=torch.long), accumulate=True)
    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    return counts[rows, columns].sum().item() / len(labels)


def adjusted_rand_index(clusters: Tensor, labels: Tensor) -> float:
    """How often two labellings `(N,)` agree on whether two images belong together: 1 always, 0 as by chance."""
    from sklearn.metrics import adjusted_rand_score  # it takes a while to import

    _check_labellings(clusters, labels)
    return float(adjusted_rand_score(labels.cpu().numpy(), clusters.cpu().numpy()))


def _check_labellings(clusters: Tensor, labels: Tensor) -> None:
    if clusters.ndim != 1 or clusters.shape != labels.shape or len(labels) == 0:
        raise ValueError(
            f"Clusters and labels need one entry an image, got the shapes {tuple(clusters.shape)} and {tuple(labels.shape)}."
        )
    if any(each.is_floating_point() or each.min() < 0 for each in (clusters, labels)):
        raise ValueError("Clusters and labels must be integers of at least 0.")


@dataclass(frozen=True)
class ClusteringEvaluator(Evaluator):
    """Clusters the normalised features by k-means and compares the clusters with the classes.

    Args:
        num_clusters: by default the number of classes.
        seed: of k-means.
    """

    type: ClassVar[str] = "clustering"
    metrics: ClassVar[dict[str, Metric]] = {
        "clustering_nmi": Metric("NMI of clusters and classes"),
        "clustering_ari": Metric("adjusted Rand index of clusters and classes"),
        "clustering_accuracy": Metric("clustering accuracy", percent=True),
    }
    needs_labels: ClassVar[bool] = True
    needs_train_features: ClassVar[bool] = False

    num_clusters: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.num_clusters is not None and (type(self.num_clusters) is not int or self.num_clusters < 2):
            raise ValueError(f"num_clusters={self.num_clusters!r} of the evaluation 'clustering' must be at least 2.")
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"seed={self.seed!r} of the evaluation 'clustering' must be a whole number of at least 0.")

    def evaluate(self, features: LabelledFeatures, train: LabelledFeatures | None) -> dict[str, float]:
        check_features("evaluation", features.features, features.labels)
        num_clusters = self.num_clusters or len(features.labels.unique())
        if not 2 <= num_clusters <= len(features.features):
            raise ValueError(
                f"{num_clusters} clusters of {len(features.features)} images: the evaluation 'clustering' needs two "
                "classes or more, and an image a cluster; set its num_clusters"
            )
        with all_cores():
            # Halves of images that are all the same would follow their order, which may be that of the classes.
            clusters, _ = kmeans(
                normalize(features.features).cpu(),
                num_clusters,
                iterations=50,
                seed=self.seed,
                restarts=10,
                fill_empty=False,
            )
        return {
            "clustering_nmi": normalized_mutual_information(clusters, features.labels),
            "clustering_ari": adjusted_rand_index(clusters, features.labels),
            "clustering_accuracy": clustering_accuracy(clusters, features.labels),
        }
