"""MaskFeat's configuration."""

from typing import ClassVar, Literal

from transformers.models.vit.configuration_vit import ViTConfig

from ...field_types import InnerShare
from ...modules.target_config import MaskedTargetConfig


class MaskFeatConfig(MaskedTargetConfig):
    r"""Configuration of [`MaskFeatModel`]. The defaults are the paper's ViT-B/16 on ImageNet at 224 pixels.

    Args:
        backbone_config (`dict` or `ViTConfig`, *optional*):
            A ViT. Fields that a `dict` leaves out are those of ViT-B/16, with `layer_norm_eps` 1e-6.
        pooling (`"cls"` or `"mean"`, *optional*, defaults to `"mean"`):
            `pooler_output`: the mean of the patch tokens, or the class token.
        mask_kind, mask_ratio, mask_cell_size (*optional*, default to `"blockwise"`, 78 / 196 and 32):
            The masks, see [`MaskedPatchConfig`]: rectangles, 78 of 196 patches.
        target_type (`str`, *optional*, defaults to `"hog"`):
            Histograms of oriented gradients; see [`MaskedTargetConfig`] for what else can be predicted.
    """

    model_type = "maskfeat"
    paper: ClassVar[str] = "Masked Feature Prediction for Self-Supervised Visual Pre-Training, arXiv 2112.09133"

    pooling: Literal["cls", "mean"] = "mean"
    mask_kind: Literal["random", "aligned", "blockwise"] = "blockwise"
    mask_ratio: InnerShare = 78 / 196
    target_type: str = "hog"

    @classmethod
    def default_backbone_config(cls) -> ViTConfig:
        return ViTConfig(layer_norm_eps=1e-6)

    @classmethod
    def default_backbone_fields(cls) -> dict:
        return {"model_type": "vit", "layer_norm_eps": 1e-6}
