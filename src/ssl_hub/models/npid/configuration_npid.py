"""NPID's configuration."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from ...configuration_utils import SSLConfig, check_positive


@strict
class NPIDConfig(SSLConfig):
    r"""Configuration of [`NPIDModel`]. The defaults are MMSelfSup's ResNet-50 on ImageNet.

    Args:
        projection_size (`int`, *optional*, defaults to 128): Size of the vectors that are compared.
        num_negatives (`int`, *optional*, defaults to 65536):
            Rows of the memory that are drawn, with replacement, as an image's negatives.
        ensure_negatives (`bool`, *optional*, defaults to `False`):
            Whether an image's own row is never drawn as its negative.
        memory_momentum (`float`, *optional*, defaults to 0.5):
            Weight of the new vector when a row of the memory is updated, in (0, 1].
        temperature (`float`, *optional*, defaults to 0.07): Temperature of the softmax over similarities.
        memory_size (`int`, *optional*, defaults to 0):
            Images in the memory. The beginning of a training run sets it to the size of the dataset.
    """

    model_type = "npid"
    paper: ClassVar[str] = "Unsupervised Feature Learning via Non-Parametric Instance Discrimination, arXiv 1805.01978"

    projection_size: int = 128
    num_negatives: int = 65536
    ensure_negatives: bool = False
    memory_momentum: float = 0.5
    temperature: float = 0.07
    memory_size: int = 0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        check_positive(self, "projection_size", "num_negatives", "temperature")
        if not 0 < self.memory_momentum <= 1:
            raise ValueError(f"memory_momentum must lie in (0, 1], got {self.memory_momentum}")
        if self.memory_size < 0:
            raise ValueError(f"memory_size must be 0 or more, got {self.memory_size}")
