"""BYOL's configuration."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from ...configuration_utils import JointEmbeddingConfig, check_momentum, check_positive


@strict
class BYOLConfig(JointEmbeddingConfig):
    r"""Configuration of [`BYOLModel`]. The defaults are MMSelfSup's ResNet-50 on ImageNet.

    Args:
        projection_hidden_size (`int`, *optional*, defaults to 4096): Width of the projector's hidden layer.
        projection_size (`int`, *optional*, defaults to 256): Size of projections and predictions.
        predictor_hidden_size (`int`, *optional*, defaults to 4096): Width of the predictor's hidden layer.
        teacher_base_momentum (`float`, *optional*, defaults to 0.99):
            Momentum of the teacher at the start; it rises to 1 by a cosine over the training.
    """

    model_type = "byol"
    paper: ClassVar[str] = "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning, arXiv 2006.07733"

    projection_hidden_size: int = 4096
    projection_size: int = 256
    predictor_hidden_size: int = 4096
    teacher_base_momentum: float = 0.99

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        check_positive(self, "predictor_hidden_size")
        check_momentum(self, "teacher_base_momentum")
