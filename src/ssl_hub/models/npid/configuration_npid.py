"""NPID's configuration."""

from typing import ClassVar

from ...configuration_utils import SSLConfig
from ...field_types import NonNegativeInt, PositiveFloat, PositiveInt, PositiveShare


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

    projection_size: PositiveInt = 128
    num_negatives: PositiveInt = 65536
    ensure_negatives: bool = False
    memory_momentum: PositiveShare = 0.5
    temperature: PositiveFloat = 0.07
    memory_size: NonNegativeInt = 0
