"""MoCo v3's configuration."""

from typing import ClassVar

from transformers.models.vit.configuration_vit import ViTConfig

from ...configuration_utils import PredictorConfig
from ...field_types import PositiveFloat, PositiveInt, Probability


class MoCoV3Config(PredictorConfig):
    r"""Configuration of [`MoCoV3Model`]. The defaults are the paper's ViT-S/16 on ImageNet.

    Args:
        projection_hidden_size (`int`, *optional*, defaults to 4096): Width of the projector's hidden layers.
        projection_size (`int`, *optional*, defaults to 256): Size of projections and predictions.
        projection_num_layers (`int`, *optional*): Layers of the projector; 3 for a ViT, 2 for any other backbone.
        predictor_last_batchnorm (`bool`, *optional*):
            Whether BatchNorm follows the predictor; yes for a ViT, no for any other backbone.
        projection_last_batchnorm_affine, predictor_last_batchnorm_affine (`bool`, *optional*, defaults to `False`):
            Whether the BatchNorm after the last linear layer has weight and bias.
        temperature (`float`, *optional*): Of the softmax over similarities; 0.2 for a ViT, 1.0 for any other backbone.
        teacher_base_momentum (`float`, *optional*, defaults to 0.99):
            Momentum of the teacher at the start; it rises to 1 by a cosine over the training.
        freeze_patch_projection (`bool`, *optional*, defaults to `True`):
            Whether a ViT's patch projection stays as it was drawn at random, which keeps the training stable.
    """

    model_type = "mocov3"
    paper: ClassVar[str] = "An Empirical Study of Training Self-Supervised Vision Transformers, arXiv 2104.02057"

    projection_hidden_size: PositiveInt = 4096
    projection_size: PositiveInt = 256
    projection_num_layers: PositiveInt | None = None
    projection_last_batchnorm_affine: bool = False
    predictor_last_batchnorm: bool | None = None
    predictor_last_batchnorm_affine: bool = False
    temperature: PositiveFloat | None = None
    teacher_base_momentum: Probability = 0.99
    freeze_patch_projection: bool = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        is_vit = self.backbone_config.model_type == "vit"
        if self.projection_num_layers is None:
            self.projection_num_layers = 3 if is_vit else 2
        if self.predictor_last_batchnorm is None:
            self.predictor_last_batchnorm = is_vit
        if self.temperature is None:
            self.temperature = 0.2 if is_vit else 1.0

    @classmethod
    def default_backbone_config(cls) -> ViTConfig:
        """ViT-S/16 with twelve heads, as in the paper."""
        return ViTConfig(hidden_size=384, num_attention_heads=12, intermediate_size=1536, layer_norm_eps=1e-6)
