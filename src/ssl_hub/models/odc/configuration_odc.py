"""ODC's configuration."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from ...configuration_utils import ClusteringConfig, check_positive


@strict
class ODCConfig(ClusteringConfig):
    r"""Configuration of [`ODCModel`]. The defaults are the paper's ResNet-50 on ImageNet.

    Args:
        class_weight_power (`float`, *optional*, defaults to 0.5):
            The loss of an image weighs as much as the size of its cluster to the power of minus this.
        projection_hidden_size (`int`, *optional*, defaults to 512): Width of the neck's hidden layer.
        projection_size (`int`, *optional*, defaults to 256): Size of the features that are kept and clustered.
        dropout (`float`, *optional*, defaults to 0.5): Of the hidden layer.
        memory_momentum (`float`, *optional*, defaults to 0.5): The share of the new feature in an image's kept one.
        min_cluster_size (`int`, *optional*, defaults to 20): Members below which a cluster is dissolved.
        centroid_interval (`int`, *optional*, defaults to 10): Steps between two updates of the centroids.
    """

    model_type = "odc"
    paper: ClassVar[str] = "Online Deep Clustering for Unsupervised Representation Learning, arXiv 2006.10645"

    class_weight_power: float = 0.5
    projection_hidden_size: int = 512
    projection_size: int = 256
    dropout: float = 0.5
    memory_momentum: float = 0.5
    min_cluster_size: int = 20
    centroid_interval: int = 10

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        check_positive(self, "projection_hidden_size", "projection_size", "min_cluster_size", "centroid_interval")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if not 0 < self.memory_momentum <= 1:
            raise ValueError(f"memory_momentum must lie in (0, 1], got {self.memory_momentum}")
