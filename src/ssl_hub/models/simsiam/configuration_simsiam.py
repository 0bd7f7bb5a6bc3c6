"""SimSiam's configuration."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from ...configuration_utils import JointEmbeddingConfig, check_positive


@strict
class SimSiamConfig(JointEmbeddingConfig):
    r"""Configuration of [`SimSiamModel`]. The defaults are the paper's ResNet-50 on ImageNet.

    Args:
        projection_size (`int`, *optional*, defaults to 2048): Size of projections and predictions.
        predictor_hidden_size (`int`, *optional*, defaults to 512): Width of the predictor's hidden layer.
    """

    model_type = "simsiam"
    paper: ClassVar[str] = "Exploring Simple Siamese Representation Learning, arXiv 2011.10566"

    zero_init_residual: bool = True
    projection_size: int = 2048
    predictor_hidden_size: int = 512

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        check_positive(self, "predictor_hidden_size")
