"""What an algorithm remembers of earlier batches. Saved with the model, and the same on every process."""

from typing import ClassVar

import torch
from torch import nn
from transformers import initialization as init

from ..distributed import broadcast_, gather, process_index
from .checks import check_values
from .clustering import cluster_means, cluster_sizes, nearest_centroids, rebuild_small_clusters
from .losses import normalize, to_float32


class Queue(nn.Module):
    """A first-in-first-out queue of unit vectors, from MoCo (arXiv 1911.05722). It begins with random ones.

    Buffers: `vectors` `(size, dim)` and `pointer` `()`, the row that is written next.
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, dim))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def random_vectors(self) -> torch.Tensor:
        return normalize(torch.randn_like(self.vectors))

    @torch.no_grad()
    def enqueue(self, vectors: torch.Tensor) -> None:
        """Writes the vectors `(B, dim)` of all processes over the oldest ones; one that is not finite leaves the old."""
        vectors = gather(vectors.to(self.vectors.dtype))
        size, batch_size = len(self.vectors), len(vectors)
        if size % batch_size != 0:
            sizes = [n for n in range(batch_size, 0, -1) if size % n == 0][:1]
            sizes += [n for n in range(batch_size + 1, size + 1) if size % n == 0][:1]
            raise ValueError(
                f"the queue's size {size} must be a multiple of the batch size of all processes, {batch_size}; batch "
                f"sizes near it that divide it: {', '.join(map(str, sizes))}. Or set queue_size to "
                f"{max(size // batch_size, 1) * batch_size}."
            )
        rows = torch.arange(batch_size, device=self.pointer.device) + self.pointer
        self.vectors[rows] = finite_or(vectors, self.vectors[rows])
        self.pointer.copy_((self.pointer + batch_size) % size)


class SampleMemory(nn.Module):
    """Base of the memories with a row for every image of a dataset: what they check, and how they are written.

    A subclass names the buffer whose rows are the images; it has none, or is None, until a run says how many there are.
    """

    sample_buffer: ClassVar[str]

    def check_indices(self, indices: torch.Tensor, batch_size: int) -> None:
        """Raises `ValueError` unless `indices` `(B,)` are rows of the memory, one for each image of the batch."""
        rows = self.get_buffer(self.sample_buffer)
        num_samples = 0 if rows is None else len(rows)
        if num_samples == 0:
            raise ValueError(
                "the memory has no rows yet: call model.begin_run(num_samples), with the number of images of the "
                "dataset, before training"
            )
        if indices.shape != (batch_size,) or indices.is_floating_point():
            raise ValueError(
                f"indices must be the {batch_size} rows of the images in the dataset, whole numbers of the shape "
                f"({batch_size},); got {indices.dtype} of the shape {tuple(indices.shape)}"
            )
        check_values(
            ((indices >= 0) & (indices < num_samples)).all(),
            f"indices must lie in [0, {num_samples}), the memory's {num_samples} images",
            lambda: (
                f"{int(indices.min())} to {int(indices.max())}. Was model.begin_run called with the size of this dataset?"
            ),
        )

    def last_of_each(self, indices: torch.Tensor) -> torch.Tensor:
        """The position `(B,)`, for each row `(B,)`, where it is named last.

        All that is written to a row has to be the same: which of several a device writes last is not defined.
        """
        positions = torch.arange(len(indices), device=indices.device)
        return ((indices[:, None] == indices) * positions).amax(dim=1)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        rows = self.get_buffer(self.sample_buffer)
        saved = state_dict.get(f"{prefix}{self.sample_buffer}")
        if rows is not None and saved is not None and saved.shape != rows.shape:
            *_, error_msgs = args
            error_msgs.append(
                f"its memory holds {describe_rows(saved)} and this run's {describe_rows(rows)}. A run resumes with the "
                "dataset that it began with; to train on another one, start from the weights with --model_name_or_path"
            )
        else:
            super()._load_from_state_dict(state_dict, prefix, *args)


def finite_or(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The rows `(B, D)`, with others where one holds NaN or infinity: a bad batch must not stay in a memory."""
    return torch.where(rows.isfinite().all(dim=1, keepdim=True), rows, others)


def moved_rows(rows: torch.Tensor, features: torch.Tensor, momentum: float) -> torch.Tensor:
    """Unit vectors `(B, D)`: the rows of a memory, moved towards their new features by the share `momentum`."""
    before = to_float32(rows)
    return finite_or(normalize(before.lerp(features, momentum)), before).to(rows.dtype)


def describe_rows(rows: torch.Tensor) -> str:
    return f"{len(rows)} images" + (f" x {rows.shape[1]} features" if rows.ndim == 2 else "")


class InstanceMemory(SampleMemory):
    """A unit vector for every image of a dataset, an average of its latest features (arXiv 1805.01978).

    Buffer: `features` `(num_samples, dim)`, row i is image i; without a row until `start` says how many there are.

    Args:
        momentum: weight of the NEW feature in the average, in (0, 1].
    """

    sample_buffer = "features"

    def __init__(self, num_samples: int, dim: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("features", torch.zeros(num_samples, dim))

    @torch.no_grad()
    def start(self, num_samples: int) -> None:
        """Begins anew with random unit vectors, the same on every process; none at all for 0 samples."""
        features = self.features
        self.features = broadcast_(normalize(features.new_empty(num_samples, features.shape[1]).normal_()))

    @torch.no_grad()
    def update(self, indices: torch.Tensor, features: torch.Tensor) -> None:
        """Moves the rows `(B,)` of all processes towards their new features `(B, dim)`.

        Of an image that is there twice, the last feature counts.
        """
        indices, features = gather(indices), gather(normalize(features.to(self.features.dtype)))
        moved = moved_rows(self.features[indices], features, self.momentum)
        self.features[indices] = moved[self.last_of_each(indices)]


class ClusterMemory(SampleMemory):
    """The cluster of every image of a dataset.

    Buffers: `labels` `(num_samples,)`, -1 for an image without a cluster, once `start` has said how many there are;
    `centroids` `(num_clusters, dim)`, zero before the first clustering; `class_weights` `(num_clusters,)` of the loss.
    """

    sample_buffer = "labels"

    def __init__(self, num_clusters: int, dim: int):
        super().__init__()
        self.register_buffer("labels", None)
        self.register_buffer("centroids", torch.zeros(num_clusters, dim))
        self.register_buffer("class_weights", torch.zeros(num_clusters))

    def init_buffers(self) -> None:
        init.zeros_(self.centroids)
        init.constant_(self.class_weights, 1 / len(self.class_weights))

    def start(self, num_samples: int) -> None:
        """Makes room for the images of a dataset; none has a cluster yet."""
        self.labels = torch.full((num_samples,), -1, device=self.centroids.device)

    def sizes(self) -> torch.Tensor:
        """Members `(num_clusters,)` of each cluster."""
        return cluster_sizes(self.labels, len(self.centroids))


class OnlineClusterMemory(ClusterMemory):
    """The feature and the cluster of every image, which every batch brings up to date (ODC, arXiv 2006.10645).

    Buffer besides: `features` `(num_samples, dim)`, unit vectors.

    Args:
        momentum: weight of the NEW feature in the average, in (0, 1].
    """

    def __init__(self, num_clusters: int, dim: int, momentum: float):
        super().__init__(num_clusters, dim)
        self.momentum = momentum
        self.register_buffer("features", None)

    def start(self, num_samples: int) -> None:
        super().start(num_samples)
        self.features = self.centroids.new_zeros(num_samples, self.centroids.shape[1])

    @torch.no_grad()
    def update(self, indices: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Moves the rows `(B,)` of all processes towards their new features `(B, dim)`, and labels them by the nearest
        centroid.

        Of an image that is there twice, the last feature counts.

        Returns:
            The share of the images whose cluster changes.
        """
        indices, features = gather(indices), gather(normalize(features.to(self.features.dtype)))
        moved = moved_rows(self.features[indices], features, self.momentum)[self.last_of_each(indices)]
        labels = nearest_centroids(moved, self.centroids)
        changed = labels != self.labels[indices]
        self.features[indices], self.labels[indices] = moved, labels
        return changed.float().mean()

    @torch.no_grad()
    def update_centroids(self) -> None:
        """Makes the centroids the means of their clusters."""
        self.centroids.copy_(broadcast_(cluster_means(self.features, self.labels, self.centroids)))

    @torch.no_grad()
    def rebuild_small_clusters(self, min_size: int) -> None:
        """See the function of the same name; one process does it for all."""
        if (self.sizes() >= min_size).all():
            return
        if process_index() == 0:
            rebuild_small_clusters(self.features, self.labels, self.centroids, min_size)
        broadcast_(self.labels)
        broadcast_(self.centroids)
