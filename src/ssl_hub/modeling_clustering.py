"""The base of the algorithms that make their own labels by clustering: DeepCluster and ODC."""

import torch

from .configuration_utils import ClusteringConfig
from .lifecycle import ParameterRule
from .modeling_outputs import (
    ClusterOutput,
    SSLLossOutput,
)
from .modeling_utils import SSLModel
from .modules.backbones import backbone_hidden_size, build_backbone
from .modules.clustering import check_clusters, cluster_weights, describe_clusters
from .modules.heads import ClassifierHead
from .modules.losses import weighted_cross_entropy
from .modules.memories import ClusterMemory


class ClusteringModel(SSLModel):
    """Base of the algorithms that classify images into clusters of their own features: `backbone`, then `neck` if there
    is one, `head` the classifier, `memory` the clusters.

    A subclass makes them after calling this constructor, calls `post_init()` at the end of its own, and implements
    `project`, `clustered` and `begin_epoch`.
    """

    # The classifier starts anew with the clusters; what it learned for the last ones must not push it on.
    parameter_rules = (ParameterRule(r"^head\.", momentum=0.0),)
    training_state = ("memory.labels", "memory.features")
    _keys_to_ignore_on_load_unexpected = [r"^memory\.(labels|features)$"]  # noqa: RUF012 - transformers' name and type
    memory: ClusterMemory
    head: ClassifierHead
    min_cluster_size = 1

    def __init__(self, config: ClusteringConfig):
        super().__init__(config)
        self.backbone = build_backbone(config.backbone_config)
        self.hidden_size = backbone_hidden_size(self.backbone)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ClusterMemory):
            module.init_buffers()

    def project(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What is classified `(B, D)`."""
        raise NotImplementedError

    def clustered(self, projections: torch.Tensor) -> torch.Tensor:
        """The unit vectors `(B, dim)` that are clustered, of what is classified."""
        raise NotImplementedError

    def classify(self, projections: torch.Tensor, indices: torch.Tensor) -> SSLLossOutput:
        """The loss of classifying the images in these rows of the dataset into their clusters."""
        self.memory.check_indices(indices, len(projections))
        labels = self.memory.labels[indices]
        logits = self.head(projections)
        loss = weighted_cross_entropy(logits, labels, self.memory.class_weights, self.config.weighted_mean)
        losses = describe_clusters(self.memory.labels, self.config.num_clusters)
        losses["cross_entropy"] = loss.detach()
        losses["accuracy"] = (logits.detach().argmax(dim=1) == labels).float().mean()
        return SSLLossOutput(loss=loss, losses=losses)

    def predict(self, pixel_values: torch.Tensor) -> ClusterOutput:
        """`mode="predict"`: the cluster of each image."""
        with torch.no_grad():
            projections = self.project(pixel_values)
            logits = self.head(projections)
            cluster_ids = logits.argmax(dim=1)
            distances = (self.clustered(projections) - self.memory.centroids[cluster_ids]).norm(dim=1)
        return ClusterOutput(logits=logits, cluster_ids=cluster_ids, distances=distances)

    @property
    def cluster_labels(self) -> torch.Tensor | None:
        return None if self.memory.labels is None else self.memory.labels.to("cpu", copy=True)

    def begin_run(self, num_samples: int | None) -> None:
        if num_samples is None:
            raise ValueError(
                f"{type(self).__name__} keeps the cluster of every image, and a stream does not say how many there are: "
                "load the dataset without streaming, or take an algorithm that needs no bank, such as SwAV"
            )
        check_clusters(num_samples, self.config.num_clusters, self.min_cluster_size)
        self.memory.start(num_samples)

    def update_class_weights(self) -> None:
        self.memory.class_weights.copy_(cluster_weights(self.memory.sizes(), self.config.class_weight_power))

    @torch.no_grad()
    def redraw_head(self) -> None:
        """Draws the classifier anew, alike on every process; `_init_weights` leaves alone what was loaded."""
        linear = self.head.classifier
        linear.weight.copy_(linear.weight_std * torch.randn(linear.weight.shape))
        linear.bias.zero_()
        self.redrawn_parameters = tuple(linear.parameters())
