"""SwAV's configuration."""

from typing import ClassVar

from ...configuration_utils import JointEmbeddingConfig
from ...field_types import AtLeastTwo, NonNegativeInt, PositiveFloat, PositiveInt


class SwAVConfig(JointEmbeddingConfig):
    r"""Configuration of [`SwAVModel`]. The defaults are MMSelfSup's ResNet-50 on ImageNet.

    Args:
        mlp_projector (`bool`, *optional*, defaults to `True`):
            Whether the projector is an MLP of two layers or one linear layer.
        num_large_crops (`int`, *optional*, defaults to 2): Views that are assigned to prototypes; they come first.
        num_small_crops (`int`, *optional*, defaults to 6): Further views, which only predict the assignments.
        num_prototypes (`int`, *optional*, defaults to 3000): Number of prototypes.
        temperature (`float`, *optional*, defaults to 0.1): Temperature of the softmax over prototypes.
        sinkhorn_epsilon (`float`, *optional*, defaults to 0.05): Entropy regularisation of the assignment.
        sinkhorn_iterations (`int`, *optional*, defaults to 3): Normalisations of rows and columns.
        queue_size (`int`, *optional*, defaults to 3840):
            Earlier projections of each large crop that join the assignment, over all processes; 0 for none.
        queue_start_epoch (`int`, *optional*, defaults to 15): Epoch, from 0, in which the queue begins to fill.
        freeze_prototypes_steps (`int`, *optional*, defaults to 5005):
            Optimizer steps in which the prototypes stay as they are.
    """

    model_type = "swav"
    paper: ClassVar[str] = (
        "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, arXiv 2006.09882"
    )

    zero_init_residual: bool = True
    mlp_projector: bool = True
    num_large_crops: PositiveInt = 2
    num_small_crops: NonNegativeInt = 6
    num_prototypes: AtLeastTwo = 3000
    temperature: PositiveFloat = 0.1
    sinkhorn_epsilon: PositiveFloat = 0.05
    sinkhorn_iterations: PositiveInt = 3
    queue_size: NonNegativeInt = 3840
    queue_start_epoch: NonNegativeInt = 15
    freeze_prototypes_steps: NonNegativeInt = 5005

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.num_large_crops + self.num_small_crops < 2:
            raise ValueError("SwAV compares at least two crops: num_large_crops + num_small_crops must be 2 or more")
