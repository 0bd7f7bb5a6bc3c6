"""RelativeLoc's configuration."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from ...configuration_utils import SSLConfig, check_positive


@strict
class RelativeLocConfig(SSLConfig):
    r"""Configuration of [`RelativeLocModel`]. The defaults are MMSelfSup's ResNet-50 on ImageNet.

    Args:
        projection_size (`int`, *optional*, defaults to 4096): Width of the layer between a pair's features and the head.
        dropout (`float`, *optional*, defaults to 0.5): Share of that layer that is dropped in training, in [0, 1).
    """

    model_type = "relativeloc"
    paper: ClassVar[str] = "Unsupervised Visual Representation Learning by Context Prediction, arXiv 1505.05192"

    projection_size: int = 4096
    dropout: float = 0.5
    # 124, 117, 104 and 59, 58, 58 of 255
    image_mean: list[float] | tuple[float, ...] = (124 / 255, 117 / 255, 104 / 255)
    image_std: list[float] | tuple[float, ...] = (59 / 255, 58 / 255, 58 / 255)

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        check_positive(self, "projection_size")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
