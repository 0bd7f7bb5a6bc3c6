"""RelativeLoc's configuration."""

from typing import ClassVar

from ...configuration_utils import SSLConfig
from ...field_types import PositiveFloat, PositiveInt, ShareBelowOne


class RelativeLocConfig(SSLConfig):
    r"""Configuration of [`RelativeLocModel`]. The defaults are MMSelfSup's ResNet-50 on ImageNet.

    Args:
        projection_size (`int`, *optional*, defaults to 4096): Width of the layer between a pair's features and the head.
        dropout (`float`, *optional*, defaults to 0.5): Share of that layer that is dropped in training, in [0, 1).
    """

    model_type = "relativeloc"
    paper: ClassVar[str] = "Unsupervised Visual Representation Learning by Context Prediction, arXiv 1505.05192"

    projection_size: PositiveInt = 4096
    dropout: ShareBelowOne = 0.5
    # 124, 117, 104 and 59, 58, 58 of 255
    image_mean: list[float] | tuple[float, ...] = (124 / 255, 117 / 255, 104 / 255)
    image_std: list[PositiveFloat] | tuple[PositiveFloat, ...] = (59 / 255, 58 / 255, 58 / 255)
