"""BEiT's configuration."""

from typing import ClassVar, Literal

from transformers.models.beit.configuration_beit import BeitConfig

from ...field_types import InnerShare
from ...modules.target_config import MaskedTargetConfig


class BEiTV1Config(MaskedTargetConfig):
    r"""Configuration of [`BEiTV1Model`]. The defaults are the paper's ViT-B/16 on ImageNet at 224 pixels.

    Args:
        backbone_config (`dict` or `BeitConfig`, *optional*):
            A BEiT with a mask token. Fields that a `dict` leaves out are those of the paper's ViT-B/16, with one table
            of relative positions for all layers.
        pooling (`"cls"` or `"mean"`, *optional*, defaults to `"mean"`):
            `pooler_output`: the mean of the patch tokens, or the class token.
        mask_kind, mask_ratio, mask_cell_size (*optional*, default to `"blockwise"`, 75 / 196 and 32):
            The masks, see [`MaskedPatchConfig`]: rectangles, 75 of 196 patches.
        target_type (`str`, *optional*, defaults to `"dalle"`): Tokens of DALL-E; see [`MaskedTargetConfig`].
        target_name_or_path (`str`, *optional*, defaults to `"facebook/flava-image-codebook"`): DALL-E's encoder.
    """

    model_type = "beitv1"  # transformers' own model is "beit"
    paper: ClassVar[str] = "BEiT: BERT Pre-Training of Image Transformers, arXiv 2106.08254"
    backbone_types: ClassVar[tuple[str, ...]] = ("beit",)

    pooling: Literal["cls", "mean"] = "mean"
    mask_kind: Literal["random", "aligned", "blockwise"] = "blockwise"
    mask_ratio: InnerShare = 75 / 196
    target_type: str = "dalle"
    target_name_or_path: str | None = "facebook/flava-image-codebook"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if not self.backbone_config.use_mask_token or self.backbone_config.use_mean_pooling:
            raise ValueError(
                "BEiT needs a mask token, and a norm after its last layer: its backbone_config needs use_mask_token True "
                "and use_mean_pooling False"
            )

    @classmethod
    def default_backbone_config(cls) -> BeitConfig:
        fields = cls.default_backbone_fields()
        del fields["model_type"]
        return BeitConfig(**fields)

    @classmethod
    def default_backbone_fields(cls) -> dict:
        return {
            "model_type": "beit",
            "use_mask_token": True,
            "use_shared_relative_position_bias": True,
            "use_mean_pooling": False,
            "layer_norm_eps": 1e-6,
        }
