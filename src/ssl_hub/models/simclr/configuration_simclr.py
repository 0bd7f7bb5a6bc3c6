"""SimCLR's configuration."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from ...configuration_utils import ProjectorConfig, check_positive


@strict
class SimCLRConfig(ProjectorConfig):
    r"""Configuration of [`SimCLRModel`]. The defaults are MMSelfSup's ResNet-50 on ImageNet.

    Args:
        temperature (`float`, *optional*, defaults to 0.1): Temperature of the softmax over similarities.
    """

    model_type = "simclr"
    paper: ClassVar[str] = "A Simple Framework for Contrastive Learning of Visual Representations, arXiv 2002.05709"

    zero_init_residual: bool = True
    temperature: float = 0.1

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        check_positive(self, "temperature")
