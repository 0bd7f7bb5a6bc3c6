"""DeepCluster: Deep Clustering for Unsupervised Learning of Visual Features (arXiv 1807.05520).

Before every epoch the features of all images are clustered; in the epoch the network learns to tell the clusters.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init

from ...distributed import broadcast_, check_batch_for_batchnorm, process_index
from ...lifecycle import FeatureTable, Progress
from ...modeling_clustering import ClusteringModel
from ...modeling_outputs import SSLLossOutput
from ...modeling_utils import SSLForImageClassification
from ...modules.clustering import (
    all_cores,
    check_clusters,
    check_finite,
    describe_clusters,
    fit_whitening,
    kmeans,
    normalized_mutual_information,
    whiten,
)
from ...modules.heads import ClassifierHead
from ...modules.losses import to_float32
from ...modules.memories import ClusterMemory
from .configuration_deepcluster import DeepClusterConfig


class Sobel(nn.Module):
    """The horizontal and vertical gradients `(B, 2, H, W)` of normalised images `(B, 3, H, W)`, which are not trained.

    Buffers: `grey` `(1, 3, 1, 1)` and `gradients` `(2, 1, 3, 3)`, the filters of the two convolutions.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("grey", torch.zeros(1, 3, 1, 1))
        self.register_buffer("gradients", torch.zeros(2, 1, 3, 3))

    def init_buffers(self) -> None:
        horizontal = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        init.constant_(self.grey, 1 / 3)
        init.copy_(self.gradients, torch.stack([horizontal, horizontal.T])[:, None])

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        grey = nn.functional.conv2d(pixel_values, self.grey)
        return nn.functional.conv2d(grey, self.gradients, padding=1)


class SobelInput:
    """What model and classifier share: the filter in front of the backbone, `sobel`, if there is one."""

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Sobel):
            module.init_buffers()

    def backbone_input(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.sobel(pixel_values) if self.config.sobel else pixel_values


class DeepClusterMemory(ClusterMemory):
    """Keeps the whitening that the centroids were found behind, too.

    Buffers besides: `mean` `(hidden_size,)` and `projection` `(hidden_size, dim)`, see `fit_whitening`.
    """

    def __init__(self, num_clusters: int, dim: int, hidden_size: int):
        super().__init__(num_clusters, dim)
        self.register_buffer("mean", torch.zeros(hidden_size))
        self.register_buffer("projection", torch.zeros(hidden_size, dim))

    def init_buffers(self) -> None:
        super().init_buffers()
        init.zeros_(self.mean)
        init.zeros_(self.projection)


class DeepClusterModel(SobelInput, ClusteringModel):
    """DeepCluster (arXiv 1807.05520): `backbone`, `head` the classifier, `memory` the clusters, `sobel` if asked for."""

    config_class = DeepClusterConfig
    sync_batchnorm = False

    def __init__(self, config: DeepClusterConfig):
        super().__init__(config)
        if config.sobel:
            self.sobel = Sobel()
        self.head = ClassifierHead(self.hidden_size, config.num_clusters)
        self.memory = DeepClusterMemory(config.num_clusters, min(config.pca_size, self.hidden_size), self.hidden_size)
        self.post_init()

    def loss(self, pixel_values: torch.Tensor, *, indices: torch.Tensor) -> SSLLossOutput:
        """`mode="loss"`: the cross entropy of classifying images into their clusters.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised images.
            indices (`torch.LongTensor` of shape `(batch_size,)`): Their rows in the dataset.
        """
        check_batch_for_batchnorm(self, pixel_values)
        return self.classify(self.project(pixel_values), indices)

    def project(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.extract_features(pixel_values).pooler_output

    def clustered(self, projections: torch.Tensor) -> torch.Tensor:
        return whiten(to_float32(projections), self.memory.mean, self.memory.projection)

    def begin_epoch(self, progress: Progress, features: Callable[..., FeatureTable]) -> torch.Tensor | None:
        """Clusters all images anew and draws a new classifier."""
        table = features()
        known = table.features[table.known]
        check_clusters(len(known), self.config.num_clusters)
        check_finite(known)
        last = self.cluster_labels
        self._cluster(known, table.known, seed=int(torch.randint(2**31 - 1, ())))
        self.update_class_weights()
        self.redraw_head()

        labels = self.cluster_labels
        statistics = describe_clusters(labels, self.config.num_clusters)
        self.epoch_metrics = {name: float(value) for name, value in statistics.items()}
        if (last >= 0).any():
            self.epoch_metrics["nmi_to_last_clusters"] = normalized_mutual_information(last, labels)
        if not self.config.uniform_sampling:
            return None
        return torch.where(labels >= 0, 1 / self.memory.sizes().cpu()[labels], 0.0)

    @torch.no_grad()
    def _cluster(self, features: torch.Tensor, known: torch.Tensor, seed: int) -> None:
        """One process fills the memory for all, by the features `(M, hidden_size)` of the known ones of the images."""
        memory = self.memory
        if process_index() == 0:
            with all_cores():
                mean, projection = fit_whitening(features, memory.projection.shape[1], memory.projection.device)
                whitened = whiten(features, mean, projection)
                labels, centroids = kmeans(whitened, self.config.num_clusters, self.config.kmeans_iterations, seed)
            memory.mean.copy_(mean)
            memory.projection.copy_(projection)
            memory.centroids.copy_(centroids)
            memory.labels.fill_(-1)
            memory.labels[known.to(memory.labels.device)] = labels.to(memory.labels.device)
        for buffer in memory.buffers():
            broadcast_(buffer)


class DeepClusterForImageClassification(SobelInput, SSLForImageClassification):
    """DeepCluster's backbone with a linear classifier on its pooled features."""

    config_class = DeepClusterConfig

    def __init__(self, config: DeepClusterConfig):
        super().__init__(config)
        if config.sobel:
            self.sobel = Sobel()
            self.post_init()
