"""SimSiam's configuration."""

from typing import ClassVar

from ...configuration_utils import PredictorConfig
from ...field_types import PositiveInt


class SimSiamConfig(PredictorConfig):
    r"""Configuration of [`SimSiamModel`]. The defaults are the paper's ResNet-50 on ImageNet.

    Args:
        projection_size (`int`, *optional*, defaults to 2048): Size of projections and predictions.
        projection_num_layers (`int`, *optional*, defaults to 3): Linear layers of the projector; 2 in the paper's
            setting for CIFAR-10.
        projection_last_batchnorm_affine (`bool`, *optional*, defaults to `False`):
            Whether the BatchNorm after the last one has weight and bias.
        predictor_hidden_size (`int`, *optional*, defaults to 512): Width of the predictor's hidden layer.
        predictor_last_bias (`bool`, *optional*, defaults to `True`):
            Whether the predictor's last linear layer has a bias.
        predictor_last_batchnorm (`bool`, *optional*, defaults to `False`): Whether BatchNorm follows it.
    """

    model_type = "simsiam"
    paper: ClassVar[str] = "Exploring Simple Siamese Representation Learning, arXiv 2011.10566"

    zero_init_residual: bool = True
    projection_size: PositiveInt = 2048
    projection_num_layers: PositiveInt = 3
    projection_last_batchnorm_affine: bool = False
    predictor_hidden_size: PositiveInt = 512
    predictor_last_bias: bool = True
    predictor_last_batchnorm: bool = False
