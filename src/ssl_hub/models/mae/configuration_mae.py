"""MAE's configuration."""

from typing import ClassVar, Literal

from transformers.models.vit.configuration_vit import ViTConfig

from ...field_types import NonNegativeInt, PositiveInt
from ...modules.target_config import MaskedTargetConfig


class MAEConfig(MaskedTargetConfig):
    r"""Configuration of [`MAEModel`]. The defaults are the paper's ViT-B/16 on ImageNet at 224 pixels.

    Args:
        backbone_config (`dict` or `ViTConfig`, *optional*):
            A ViT. Fields that a `dict` leaves out are those of ViT-B/16, with `layer_norm_eps` 1e-6.
        pooling (`"cls"` or `"mean"`, *optional*, defaults to `"mean"`):
            `pooler_output`: the mean of the patch tokens, as in the paper's fine-tuning, or the class token, as in its
            linear probing.
        mask_kind, mask_ratio, mask_cell_size (*optional*, default to `"random"`, 0.75 and 32):
            The masks, see [`MaskedPatchConfig`]: three quarters of the patches, chosen uniformly.
        norm_pix_loss (`bool`, *optional*, defaults to `True`):
            Whether the pixels of a patch, as its target, are normalised by their own mean and variance.
        target_type (`str`, *optional*, defaults to `"pixels"`):
            What is predicted; see [`MaskedTargetConfig`] for what else it can be.
        decoder_hidden_size (`int`, *optional*, defaults to 512): Width of the decoder.
        decoder_num_hidden_layers (`int`, *optional*, defaults to 8): Depth of the decoder.
        decoder_num_attention_heads (`int`, *optional*, defaults to 16): Attention heads of the decoder.
        decoder_intermediate_size (`int`, *optional*, defaults to 2048): Width of the decoder's MLPs.
    """

    model_type = "mae"
    paper: ClassVar[str] = "Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377"

    pooling: Literal["cls", "mean"] = "mean"
    norm_pix_loss: bool = True
    decoder_hidden_size: PositiveInt = 512
    decoder_num_hidden_layers: NonNegativeInt = 8
    decoder_num_attention_heads: PositiveInt = 16
    decoder_intermediate_size: PositiveInt = 2048

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for prefix, config in (("", self.backbone_config), ("decoder_", self.decoder_config())):
            width, heads = config.hidden_size, config.num_attention_heads
            if width % 4 != 0 or width % heads != 0:
                raise ValueError(
                    f"{prefix}hidden_size must be a multiple of 4, for the sine-cosine position embeddings, and of "
                    f"{prefix}num_attention_heads; got {width} and {heads}"
                )

    @classmethod
    def default_backbone_config(cls) -> ViTConfig:
        return ViTConfig(**cls.default_backbone_fields())

    @classmethod
    def default_backbone_fields(cls) -> dict:
        return {"model_type": "vit", "layer_norm_eps": 1e-6}

    def decoder_config(self) -> ViTConfig:
        """The decoder's layers, as a ViT's."""
        return ViTConfig(
            hidden_size=self.decoder_hidden_size,
            num_hidden_layers=self.decoder_num_hidden_layers,
            num_attention_heads=self.decoder_num_attention_heads,
            intermediate_size=self.decoder_intermediate_size,
            layer_norm_eps=self.backbone_config.layer_norm_eps,
            image_size=self.backbone_config.image_size,
            patch_size=self.backbone_config.patch_size,
            num_channels=self.backbone_config.num_channels,
        )
