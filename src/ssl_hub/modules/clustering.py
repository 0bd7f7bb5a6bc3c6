"""Clustering of the features of a dataset: whitening, k-means without empty clusters, splits, and what to say about it.

Functions of their arguments only. Tables are gone through in chunks, so they may be memory-mapped.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from .losses import in_float32

CHUNK_SIZE = 16_384  # rows of a table


def check_clusters(num_images: int, num_clusters: int, min_size: int = 1) -> None:
    """Raises `ValueError` unless the images are enough for clusters of that size."""
    if num_images < num_clusters * min_size:
        each = "an image" if min_size == 1 else f"{min_size} images"
        raise ValueError(
            f"{num_clusters} clusters of at least {each} each need {num_clusters * min_size} readable images, and the "
            f"dataset has {num_images}: set num_clusters to {max(num_images // min_size, 2)} or less, or take more images"
        )


def check_finite(features: torch.Tensor) -> None:
    """Raises `ValueError` if a row of a table `(N, D)` holds NaN or infinity."""
    bad = sum(int((~chunk.isfinite().all(dim=1)).sum()) for chunk in features.split(CHUNK_SIZE))
    if bad:
        raise ValueError(
            f"the features of {bad} of {len(features)} images hold NaN or infinity and cannot be clustered: the model "
            "has diverged, so resume from an earlier checkpoint with a lower learning rate or without fp16"
        )


@contextmanager
def all_cores() -> Iterator[None]:
    """Lets torch and faiss use every core: launchers give each process one thread, but one clusters while others wait."""
    import faiss  # it takes a while to import

    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(cores)
    faiss.omp_set_num_threads(cores)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])


@in_float32
def fit_whitening(
    features: torch.Tensor, size: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """A PCA whose components have unit variance.

    Args:
        features: table `(N, D)` on the CPU.
        size: number of components, D at most.
        device: where the covariance is computed.

    Returns:
        On the device their mean `(D,)` and the projection `(D, size)`. A direction in which the features hardly vary
        projects to zero.
    """
    from scipy.linalg import eigh  # torch computes all eigenvectors, and takes three times as long

    chunks = features.split(CHUNK_SIZE)
    mean = sum(chunk.to(device).sum(dim=0).cpu().double() for chunk in chunks) / len(features)
    mean, covariance = mean.to(device, features.dtype), 0.0
    for chunk in chunks:
        centred = chunk.to(device) - mean
        covariance = covariance + (centred.T @ centred).cpu().double() / len(features)
    largest = [len(mean) - size, len(mean) - 1]  # the eigenvalues come in ascending order
    variances, directions = (torch.from_numpy(part) for part in eigh(covariance.numpy(), subset_by_index=largest))
    varies = variances > 1e-6 * variances[-1].clamp(min=1e-30)  # what is below is rounding in float32
    scales = torch.where(varies, variances.clamp(min=1e-30).rsqrt(), 0.0)
    return mean, (directions * scales).to(device, features.dtype)


@in_float32
def whiten(features: torch.Tensor, mean: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """Unit vectors `(N, size)` of what `fit_whitening` found for features `(N, D)`, computed where that is."""
    whitened = [F.normalize((chunk.to(mean.device) - mean) @ projection, dim=1) for chunk in features.split(CHUNK_SIZE)]
    return torch.cat([chunk.to(features.device) for chunk in whitened])


def kmeans(
    features: torch.Tensor,
    num_clusters: int,
    iterations: int,
    seed: int,
    restarts: int = 1,
    fill_empty: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """k-means of faiss (Euclidean), with all rows.

    Args:
        features: table `(N, D)` on the CPU, N >= num_clusters.
        restarts: how often to start, of which the best result counts.
        fill_empty: give empty clusters halves of the largest ones, even if all of their members are the same.

    Returns:
        The cluster `(N,)` of every row, and the centroids `(num_clusters, D)`.
    """
    import faiss  # it takes a while to import

    table = features.float().contiguous().numpy()
    solver = faiss.Kmeans(
        table.shape[1],
        num_clusters,
        niter=iterations,
        nredo=restarts,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=-(-len(table) // num_clusters),
    )
    solver.train(table)
    labels = torch.from_numpy(solver.index.search(table, 1)[1][:, 0])
    centroids = torch.from_numpy(solver.centroids).to(features.dtype)
    if fill_empty:
        for empty in (cluster_sizes(labels, num_clusters) == 0).nonzero().flatten().tolist():
            split_largest(features, labels, centroids, empty)
    return labels, centroids


def cluster_sizes(labels: torch.Tensor, num_clusters: int) -> torch.Tensor:
    """Members `(num_clusters,)` of each cluster; label -1 stands for none."""
    sizes = torch.zeros(num_clusters, dtype=torch.long, device=labels.device)
    return sizes.index_add_(0, labels.clamp(min=0), (labels >= 0).long())


def cluster_means(features: torch.Tensor, labels: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """The means `(K, D)` of the clusters' members; an empty cluster keeps its centroid."""
    sizes = cluster_sizes(labels, len(centroids))[:, None]
    sums = torch.zeros_like(centroids)
    for rows, clusters in zip(features.split(CHUNK_SIZE), labels.split(CHUNK_SIZE), strict=True):
        sums.index_add_(0, clusters.clamp(min=0), rows * (clusters >= 0)[:, None])
    return torch.where(sizes > 0, sums / sizes.clamp(min=1), centroids)


def split_largest(features: torch.Tensor, labels: torch.Tensor, centroids: torch.Tensor, empty: int) -> None:
    """Gives an empty cluster a half of the largest one, by 2-means; changes labels `(N,)` and centroids `(K, D)`."""
    from sklearn.cluster import KMeans  # it takes a while to import
    from sklearn.exceptions import ConvergenceWarning

    largest = int(cluster_sizes(labels, len(centroids)).cpu().numpy().argmax())
    members = (labels == largest).nonzero().flatten()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of members that are all the same
        solver = KMeans(n_clusters=2, random_state=0, max_iter=20)
        second = torch.from_numpy(solver.fit_predict(features[members].float().cpu().numpy())).bool()
    if second.all() or not second.any():
        second = torch.arange(len(members)) % 2 == 1
    moved = members[second.to(members.device)]
    labels[moved] = empty
    for cluster, rows in ((largest, members[~second.to(members.device)]), (empty, moved)):
        centroids[cluster] = features[rows].to(centroids.dtype).mean(dim=0)


@in_float32
def nearest_centroids(
    features: torch.Tensor, centroids: torch.Tensor, without: torch.Tensor | None = None
) -> torch.Tensor:
    """The centroid `(N,)` that is most similar (largest dot product) to each feature.

    Args:
        features: `(N, D)`.
        centroids: `(K, D)`.
        without: `(K,)`, `True` for centroids that are left out.
    """
    similarities = features @ centroids.T
    if without is not None:
        similarities = similarities.masked_fill(without, float("-inf"))
    return similarities.argmax(dim=1)


def rebuild_small_clusters(
    features: torch.Tensor, labels: torch.Tensor, centroids: torch.Tensor, min_size: int
) -> None:
    """Dissolves the clusters below a size and fills them again with halves of the largest ones (ODC, arXiv 2006.10645).

    Their members go to the most similar (largest dot product) centroid of the others. Changes labels and centroids.

    Args:
        features: unit vectors `(N, D)`.
        labels: `(N,)`, -1 for rows that belong to no cluster and stay so.
        centroids: `(K, D)`.
    """
    small = cluster_sizes(labels, len(centroids)) < min_size
    members = (small[labels.clamp(min=0)] & (labels >= 0)).nonzero().flatten()
    labels[members] = nearest_centroids(features[members].to(centroids.dtype), centroids, without=small)
    for cluster in small.nonzero().flatten().tolist():
        split_largest(features, labels, centroids, cluster)


def cluster_weights(sizes: torch.Tensor, power: float) -> torch.Tensor:
    """Weights `(K,)` of the clusters' loss, proportional to `size ** -power`; they add up to 1."""
    weights = (sizes + 1e-10) ** -power
    return weights / weights.sum()


def describe_clusters(labels: torch.Tensor, num_clusters: int) -> dict[str, torch.Tensor]:
    """How many clusters have members, and the sizes of the largest and of the smallest one, as scalars."""
    sizes = cluster_sizes(labels, num_clusters)
    return {
        "clusters_used": (sizes > 0).sum(),
        "largest_cluster": sizes.max(),
        "smallest_cluster": sizes.min(),
    }


def normalized_mutual_information(first: torch.Tensor, second: torch.Tensor) -> float:
    """How much two labellings `(N,)` tell about each other, from 0 to 1; rows where either is -1 do not count."""
    from sklearn.metrics import normalized_mutual_info_score  # it takes a while to import

    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(
            f"two labellings need one entry an image, got the shapes {tuple(first.shape)} and {tuple(second.shape)}"
        )
    first, second = first.cpu(), second.cpu()
    known = (first >= 0) & (second >= 0)
    return float(normalized_mutual_info_score(first[known].numpy(), second[known].numpy()))
