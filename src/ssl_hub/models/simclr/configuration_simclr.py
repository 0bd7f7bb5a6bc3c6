"""SimCLR's configuration."""

from typing import ClassVar

from ...configuration_utils import ProjectorConfig
from ...field_types import PositiveFloat


class SimCLRConfig(ProjectorConfig):
    r"""Configuration of [`SimCLRModel`]. The defaults are MMSelfSup's ResNet-50 on ImageNet.

    Args:
        temperature (`float`, *optional*, defaults to 0.1): Temperature of the softmax over similarities.
    """

    model_type = "simclr"
    paper: ClassVar[str] = "A Simple Framework for Contrastive Learning of Visual Representations, arXiv 2002.05709"

    zero_init_residual: bool = True
    temperature: PositiveFloat = 0.1
