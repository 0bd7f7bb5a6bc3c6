"""ODC's configuration."""

from typing import ClassVar

from ...configuration_utils import ClusteringConfig
from ...field_types import NonNegativeFloat, PositiveInt, PositiveShare, ShareBelowOne


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

    class_weight_power: NonNegativeFloat = 0.5
    projection_hidden_size: PositiveInt = 512
    projection_size: PositiveInt = 256
    dropout: ShareBelowOne = 0.5
    memory_momentum: PositiveShare = 0.5
    min_cluster_size: PositiveInt = 20
    centroid_interval: PositiveInt = 10
