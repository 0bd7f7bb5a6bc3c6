"""MaskFeat: Masked Feature Prediction for Self-Supervised Visual Pre-Training (arXiv 2112.09133).

A ViT sees a mask token in the place of some patches, and one linear layer predicts their histograms of oriented
gradients. What it shares with BEiT is `MaskTokenModel`.
"""

from transformers import PreTrainedModel

from ...modeling_masked_image import MaskTokenModel
from ...modeling_utils import SSLForImageClassification
from ..simmim.modeling_simmim import SimMIMViTModel
from .configuration_maskfeat import MaskFeatConfig


class MaskFeatModel(MaskTokenModel):
    """MaskFeat (arXiv 2112.09133): `backbone` encodes all patches, masked or not, `neck` predicts the targets."""

    config_class = MaskFeatConfig

    def build_backbone(self, config: MaskFeatConfig) -> PreTrainedModel:
        return SimMIMViTModel(config.backbone_config)


class MaskFeatForImageClassification(SSLForImageClassification):
    """MaskFeat's encoder, without its mask token, with a linear classifier on its pooled features."""

    config_class = MaskFeatConfig
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012 - transformers' name and type
        *SSLForImageClassification._keys_to_ignore_on_load_unexpected,
        r"^backbone\.embeddings\.mask_token$",
    ]

    def build_backbone(self, config: MaskFeatConfig) -> PreTrainedModel:
        return SimMIMViTModel(config.backbone_config, use_mask_token=False)
