"""MoCo's configuration."""

from typing import ClassVar

from ...configuration_utils import JointEmbeddingConfig
from ...field_types import PositiveFloat, PositiveInt, Probability


class MoCoConfig(JointEmbeddingConfig):
    r"""Configuration of [`MoCoModel`]. The defaults are MoCo v2's ResNet-50 on ImageNet; MoCo v1 has
    `mlp_projector=False` and `temperature=0.07`.

    Args:
        mlp_projector (`bool`, *optional*, defaults to `True`):
            Whether the projector is an MLP of two layers (v2) or one linear layer (v1).
        queue_size (`int`, *optional*, defaults to 65536):
            Number of keys that are kept as negatives, a multiple of the batch size of all processes.
        teacher_momentum (`float`, *optional*, defaults to 0.999): Momentum of the teacher, which encodes the keys.
        temperature (`float`, *optional*, defaults to 0.2): Temperature of the softmax over similarities.
    """

    model_type = "moco"
    paper: ClassVar[str] = (
        "Momentum Contrast for Unsupervised Visual Representation Learning, arXiv 1911.05722 (v2: 2003.04297)"
    )

    mlp_projector: bool = True
    queue_size: PositiveInt = 65536
    teacher_momentum: Probability = 0.999
    temperature: PositiveFloat = 0.2
