"""What an algorithm remembers of earlier batches. Saved with the model, and the same on every process."""

import torch
from torch import nn
from transformers import initialization as init

from ..distributed import broadcast_, gather, process_index
from .clustering import cluster_means, cluster_sizes, rebuild_small_clusters
from .losses import normalize


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
        """Writes the vectors `(B, dim)` of all processes over the oldest ones."""
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
        self.vectors[rows] = vectors
        self.pointer.copy_((self.pointer + batch_size) % size)


class ClusterMemory(nn.Module):
    """The cluster of every image of a dataset.

    Buffers: `labels` `(num_samples,)`, -1 for an image without a cluster, once `resize` has said how many there are;
    `centroids` `(num_clusters, dim)`, zero before the first clustering; `class_weights` `(num_clusters,)` of the loss.
    """

    def __init__(self, num_clusters: int, dim: int):
        super().__init__()
        self.register_buffer("labels", None)
        self.register_buffer("centroids", torch.zeros(num_clusters, dim))
        self.register_buffer("class_weights", torch.zeros(num_clusters))

    def init_buffers(self) -> None:
        init.zeros_(self.centroids)
        init.constant_(self.class_weights, 1 / len(self.class_weights))

    def resize(self, num_samples: int) -> None:
        """Makes room for the images of a dataset; none has a cluster yet."""
        self.labels = torch.full((num_samples,), -1, device=self.centroids.device)

    def sizes(self) -> torch.Tensor:
        """Members `(num_clusters,)` of each cluster."""
        return cluster_sizes(self.labels, len(self.centroids))

    def labels_of(self, indices: torch.Tensor | None) -> torch.Tensor:
        """The clusters `(B,)` of the images in these rows `(B,)` of the dataset, -1 for none."""
        if self.labels is None:
            raise ValueError(
                "the images have no clusters yet: call begin_run(number of images) and begin_epoch before mode='loss', "
                "as SSLTrainer does"
            )
        if indices is None:
            raise ValueError("mode='loss' needs indices, the rows of the images in the dataset: batch['indices']")
        in_bank = ((indices >= 0) & (indices < len(self.labels))).all()
        if torch.compiler.is_compiling():
            torch._assert_async(in_bank, "indices outside the bank")
        elif not in_bank:
            raise ValueError(
                f"indices must be rows of the {len(self.labels)} images that begin_run was told of, from 0 to "
                f"{len(self.labels) - 1}; got {int(indices.min())} to {int(indices.max())}"
            )
        return self.labels[indices]

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        saved = state_dict.get(f"{prefix}labels")
        if saved is not None and self.labels is not None and len(saved) != len(self.labels):
            errors.append(
                f"its memory holds {len(saved)} images and this run's dataset has {len(self.labels)}: resume with the "
                "dataset that it was written with, or start a new run from its weights with --model_name_or_path"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)


class OnlineClusterMemory(ClusterMemory):
    """The feature and the cluster of every image, which every batch brings up to date (ODC, arXiv 2006.10645).

    Buffer besides: `features` `(num_samples, dim)`, unit vectors.
    """

    def __init__(self, num_clusters: int, dim: int):
        super().__init__(num_clusters, dim)
        self.register_buffer("features", None)

    def resize(self, num_samples: int) -> None:
        super().resize(num_samples)
        self.features = self.centroids.new_zeros(num_samples, self.centroids.shape[1])

    @torch.no_grad()
    def update(self, indices: torch.Tensor, features: torch.Tensor, momentum: float) -> torch.Tensor:
        """Moves the features of the images of all processes towards new ones and labels them by the nearest centroid.

        Of an image that comes several times the last one counts.

        Args:
            indices: rows `(B,)`.
            features: `(B, dim)`, not normalised.
            momentum: the share of the new features.

        Returns:
            The share of the images whose cluster changes.
        """
        indices, features = gather(indices), gather(features.to(self.features.dtype))
        order = torch.arange(1, len(indices) + 1, device=indices.device)
        last = ((indices[:, None] == indices) * order).argmax(dim=1)
        moved = normalize((1 - momentum) * self.features[indices] + momentum * normalize(features))[last]
        labels = (moved @ self.centroids.T).argmax(dim=1)
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
