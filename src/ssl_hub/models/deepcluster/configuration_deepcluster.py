"""DeepCluster's configuration."""

from typing import ClassVar

from transformers.configuration_utils import PreTrainedConfig

from ...configuration_utils import ClusteringConfig, num_backbone_channels
from ...field_types import PositiveInt


class DeepClusterConfig(ClusteringConfig):
    r"""Configuration of [`DeepClusterModel`]. The defaults are MMSelfSup's ResNet-50 on ImageNet.

    Args:
        sobel (`bool`, *optional*, defaults to `False`):
            Whether the backbone sees Sobel gradients instead of colors: 2 channels, which its configuration has to say.
        pca_size (`int`, *optional*, defaults to 256):
            Components to which the features are whitened for k-means, the width of the backbone at most.
        uniform_sampling (`bool`, *optional*, defaults to `True`):
            Whether an epoch draws its images evenly from the clusters rather than each once.
    """

    model_type = "deepcluster"
    paper: ClassVar[str] = "Deep Clustering for Unsupervised Learning of Visual Features, arXiv 1807.05520"

    sobel: bool = False
    pca_size: PositiveInt = 256
    uniform_sampling: bool = True

    def __post_init__(self, **kwargs):
        if self.sobel and self.backbone_config is None:
            self.backbone_config = {"model_type": "resnet"}  # ResNet-50
        if self.sobel and not isinstance(self.backbone_config, PreTrainedConfig):
            self.backbone_config = {"num_channels": 2, **self.backbone_config}
        super().__post_init__(**kwargs)
        given = num_backbone_channels(self.backbone_config)
        if self.sobel and given != 2:
            raise ValueError(
                f"with sobel the backbone sees 2 channels, the gradients: set backbone_config.num_channels to 2; got {given}"
            )

    @property
    def num_channels(self) -> int:
        return 3 if self.sobel else num_backbone_channels(self.backbone_config)

    @property
    def backbone_note(self) -> str:
        return "It takes two channels, the Sobel gradients: `model.sobel(pixel_values)`." if self.sobel else ""
