"""BEiT: BERT Pre-Training of Image Transformers (arXiv 2106.08254).

A ViT with relative positions sees a mask token in the place of some patches, and one linear layer predicts their tokens
of DALL-E. What it shares with MaskFeat is `MaskTokenModel`.
"""

import copy
import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.beit.modeling_beit import BeitEmbeddings, BeitModel

from ...modeling_masked_image import MaskTokenModel
from ...modeling_utils import SSLForImageClassification
from ...modules.backbones import PlainCheckpointMixin
from .configuration_beitv1 import BEiTV1Config


class BEiTV1Encoder(PlainCheckpointMixin, BeitModel):
    """A `BeitModel` with the paper's initialisation, and the same checkpoint."""

    def __init__(self, config):
        super().__init__(config, add_pooling_layer=False)

    def post_init(self):
        scale_by_depth(self.layers)
        super().post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        init_beit_weights(module)
        if isinstance(module, BeitEmbeddings):
            for token in (module.cls_token, module.mask_token, module.position_embeddings):
                if token is not None:
                    init.trunc_normal_(token, std=0.02)


def scale_by_depth(layers: nn.ModuleList, first: int = 0) -> None:
    """Notes how much smaller than others the layers that end a block start, which `first` blocks come before."""
    for depth, layer in enumerate(layers, start=first + 1):
        layer.attention.o_proj.weight_scale = layer.mlp.fc2.weight_scale = 1 / math.sqrt(2 * depth)


def init_beit_weights(module: nn.Module) -> None:
    """Draws a linear or convolutional layer as BEiT's authors do, see `scale_by_depth`."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        init.trunc_normal_(module.weight, std=0.02 * getattr(module, "weight_scale", 1.0))


class BEiTV1Model(MaskTokenModel):
    """BEiT (arXiv 2106.08254): `backbone` encodes all patches, masked or not, `neck` predicts the targets."""

    config_class = BEiTV1Config

    def build_backbone(self, config: BEiTV1Config) -> PreTrainedModel:
        return BEiTV1Encoder(config.backbone_config)


class BEiTV1ForImageClassification(SSLForImageClassification):
    """BEiT's encoder, without its mask token, with a linear classifier on its pooled features."""

    config_class = BEiTV1Config
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012 - transformers' name and type
        *SSLForImageClassification._keys_to_ignore_on_load_unexpected,
        r"^backbone\.embeddings\.mask_token$",
    ]

    def build_backbone(self, config: BEiTV1Config) -> PreTrainedModel:
        backbone_config = copy.deepcopy(config.backbone_config)
        backbone_config.use_mask_token = False
        return BEiTV1Encoder(backbone_config)
