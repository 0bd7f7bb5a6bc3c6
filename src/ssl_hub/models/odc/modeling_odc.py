"""ODC: Online Deep Clustering for Unsupervised Representation Learning (arXiv 2006.10645).

DeepCluster without its epochs: every step moves the features and the clusters of its images, and the clusters follow.
"""

from collections.abc import Callable

import torch
from torch import nn

from ...distributed import broadcast_, check_batch_for_batchnorm, process_index
from ...lifecycle import FeatureTable, Progress
from ...modeling_clustering import ClusteringModel
from ...modeling_outputs import SSLLossOutput
from ...modeling_utils import SSLForImageClassification
from ...modules.clustering import all_cores, check_clusters, check_finite, describe_clusters, kmeans
from ...modules.heads import ClassifierHead
from ...modules.losses import normalize
from ...modules.memories import OnlineClusterMemory
from .configuration_odc import ODCConfig


class ODCNeck(nn.Module):
    """From pooled features to those that are kept, which are not negative."""

    def __init__(self, config: ODCConfig, hidden_size: int):
        super().__init__()
        self.fc0 = nn.Linear(hidden_size, config.projection_hidden_size)
        self.bn0 = nn.BatchNorm1d(config.projection_hidden_size, momentum=0.001, affine=False)
        self.drop = nn.Dropout(config.dropout)
        self.fc1 = nn.Linear(config.projection_hidden_size, config.projection_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc1(self.drop(self.bn0(self.fc0(features)).relu())).relu()


class ODCModel(ClusteringModel):
    """ODC (arXiv 2006.10645): `backbone`, `neck`, `head` the classifier, `memory` the features and clusters."""

    config_class = ODCConfig

    def __init__(self, config: ODCConfig):
        super().__init__(config)
        self.min_cluster_size = config.min_cluster_size
        self.neck = ODCNeck(config, self.hidden_size)
        self.head = ClassifierHead(config.projection_size, config.num_clusters)
        self.memory = OnlineClusterMemory(config.num_clusters, config.projection_size, config.memory_momentum)
        self.post_init()

    def loss(self, pixel_values: torch.Tensor, *, indices: torch.Tensor) -> SSLLossOutput:
        """`mode="loss"`: the cross entropy of classifying images into their clusters; the memory then takes in the new
        features and clusters (in training mode).

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised images.
            indices (`torch.LongTensor` of shape `(batch_size,)`): Their rows in the dataset.
        """
        check_batch_for_batchnorm(self, pixel_values)
        projections = self.project(pixel_values)
        outputs = self.classify(projections, indices)
        if self.training:
            outputs.losses["change_ratio"] = self.memory.update(indices, projections.detach())
        return outputs

    def project(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.neck(self.extract_features(pixel_values).pooler_output)

    def clustered(self, projections: torch.Tensor) -> torch.Tensor:
        return normalize(projections)

    def begin_epoch(self, progress: Progress, features: Callable[..., FeatureTable]) -> torch.Tensor:
        """Clusters the images once, when a run starts; every epoch draws images evenly, with replacement."""
        if not (self.memory.labels >= 0).any():
            table = features(self.project)
            known = table.features[table.known]
            check_clusters(len(known), self.config.num_clusters, self.min_cluster_size)
            check_finite(known)
            self._cluster(normalize(known), table.known, seed=int(torch.randint(2**31 - 1, ())))
            self.update_class_weights()
            self.redraw_head()
        else:
            self.redrawn_parameters = ()
        statistics = describe_clusters(self.memory.labels, self.config.num_clusters)
        self.epoch_metrics = {name: float(value) for name, value in statistics.items()}
        return (self.cluster_labels >= 0).float()

    @torch.no_grad()
    def _cluster(self, features: torch.Tensor, known: torch.Tensor, seed: int) -> None:
        """One process fills the memory for all, by the unit features `(M, dim)` of the known ones of the images."""
        memory = self.memory
        if process_index() == 0:
            with all_cores():
                labels, _ = kmeans(features, self.config.num_clusters, self.config.kmeans_iterations, seed)
            known = known.to(memory.labels.device)
            memory.features[known] = features.to(memory.features)
            memory.labels[known] = labels.to(memory.labels)
        for buffer in memory.buffers():
            broadcast_(buffer)
        memory.update_centroids()

    def end_step(self, progress: Progress) -> None:
        if progress.step % self.config.centroid_interval == 0:
            self.memory.update_centroids()
        self.memory.rebuild_small_clusters(self.config.min_cluster_size)
        self.update_class_weights()


class ODCForImageClassification(SSLForImageClassification):
    """ODC's backbone with a linear classifier on its pooled features."""

    config_class = ODCConfig
