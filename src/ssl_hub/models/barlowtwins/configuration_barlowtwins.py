"""Barlow Twins's configuration."""

from typing import ClassVar

from ...configuration_utils import ProjectorConfig
from ...field_types import PositiveFloat, PositiveInt


class BarlowTwinsConfig(ProjectorConfig):
    r"""Configuration of [`BarlowTwinsModel`]. The defaults are the paper's ResNet-50 on ImageNet.

    Args:
        projection_hidden_size (`int`, *optional*, defaults to 8192): Width of the projector's hidden layers.
        projection_size (`int`, *optional*, defaults to 8192): Size of the projections that are correlated.
        projection_num_layers (`int`, *optional*, defaults to 3): Linear layers of the projector.
        projection_last_batchnorm (`bool`, *optional*, defaults to `False`): Whether BatchNorm follows the last one.
        off_diagonal_weight (`float`, *optional*, defaults to 0.0051):
            Weight of the squared off-diagonal correlations against the diagonal term.
        loss_scale (`float`, *optional*, defaults to 1.0):
            Factor of the whole loss, for learning rates that were tuned with another one than 1.
    """

    model_type = "barlowtwins"
    paper: ClassVar[str] = "Barlow Twins: Self-Supervised Learning via Redundancy Reduction, arXiv 2103.03230"

    zero_init_residual: bool = True
    projection_hidden_size: PositiveInt = 8192
    projection_size: PositiveInt = 8192
    projection_num_layers: PositiveInt = 3
    projection_last_batchnorm: bool = False
    off_diagonal_weight: PositiveFloat = 0.0051
    loss_scale: PositiveFloat = 1.0
