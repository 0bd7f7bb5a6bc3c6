"""DenseCL's configuration."""

from typing import ClassVar

from ...configuration_utils import JointEmbeddingConfig
from ...field_types import NonNegativeInt, PositiveFloat, PositiveInt, Probability


class DenseCLConfig(JointEmbeddingConfig):
    r"""Configuration of [`DenseCLModel`]. The defaults are the paper's ResNet-50 on ImageNet.

    Args:
        grid_size (`int`, *optional*): Side of the grid that the dense branch pools the feature map to; the map's own.
        queue_size (`int`, *optional*, defaults to 65536):
            Length of each of the two queues of keys, a multiple of the batch size of all processes.
        teacher_momentum (`float`, *optional*, defaults to 0.999): Momentum of the teacher, which encodes the keys.
        temperature (`float`, *optional*, defaults to 0.2): Temperature of the softmax over similarities.
        dense_loss_weight (`float`, *optional*, defaults to 0.5):
            Weight of the dense loss; that of the global loss is 1 less it.
        dense_loss_start_step (`int`, *optional*, defaults to 0):
            Optimizer steps before the dense loss sets in; until then the global loss has the weight 1.
    """

    model_type = "densecl"
    paper: ClassVar[str] = "Dense Contrastive Learning for Self-Supervised Visual Pre-Training, arXiv 2011.09157"

    grid_size: PositiveInt | None = None
    queue_size: PositiveInt = 65536
    teacher_momentum: Probability = 0.999
    temperature: PositiveFloat = 0.2
    dense_loss_weight: Probability = 0.5
    dense_loss_start_step: NonNegativeInt = 0
