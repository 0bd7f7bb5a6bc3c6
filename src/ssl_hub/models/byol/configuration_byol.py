"""BYOL's configuration."""

from typing import ClassVar

from ...configuration_utils import PredictorConfig
from ...field_types import PositiveInt, Probability


class BYOLConfig(PredictorConfig):
    r"""Configuration of [`BYOLModel`]. The defaults are MMSelfSup's ResNet-50 on ImageNet.

    Args:
        projection_hidden_size (`int`, *optional*, defaults to 4096): Width of the projector's hidden layer.
        projection_size (`int`, *optional*, defaults to 256): Size of projections and predictions.
        projection_bias, predictor_bias (`bool`, *optional*, defaults to `True`):
            Whether the linear layers before the last one have a bias.
        projection_last_batchnorm, predictor_last_batchnorm (`bool`, *optional*, defaults to `False`):
            Whether BatchNorm follows the last one.
        teacher_base_momentum (`float`, *optional*, defaults to 0.99):
            Momentum of the teacher at the start; it rises to 1 by a cosine over the training.
    """

    model_type = "byol"
    paper: ClassVar[str] = "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning, arXiv 2006.07733"

    projection_hidden_size: PositiveInt = 4096
    projection_size: PositiveInt = 256
    projection_bias: bool = True
    projection_last_batchnorm: bool = False
    predictor_bias: bool = True
    predictor_last_batchnorm: bool = False
    teacher_base_momentum: Probability = 0.99
