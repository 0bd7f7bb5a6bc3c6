"""BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers (arXiv 2208.06366).

BEiT with the tokens of VQ-KD, which are predicted twice: from the last layer, and by two more layers from the patches
of an early one and the class token of the last, so that this has to sum up the image.
"""

import torch
from torch import nn
from transformers.models.beit.modeling_beit import BeitLayer, BeitPreTrainedModel

from ...modeling_outputs import SSLLossOutput
from ...modules.losses import target_loss
from ...modules.masking import take_patches
from ..beitv1.modeling_beitv1 import BEiTV1ForImageClassification, BEiTV1Model, init_beit_weights, scale_by_depth
from .configuration_beitv2 import BEiTV2Config


class BEiTV2Neck(BeitPreTrainedModel):
    """More layers for an early layer's patches and the last class token; `predict_targets` comes after both paths."""

    def __init__(self, config: BEiTV2Config, size: int):
        backbone, first = config.backbone_config, config.early_layer
        super().__init__(backbone)
        depths = range(first, first + config.neck_num_hidden_layers)
        rates = [backbone.drop_path_rate * depth / (backbone.num_hidden_layers - 1) for depth in depths]
        self.layers = nn.ModuleList([BeitLayer(backbone, drop_path_rate=rate) for rate in rates])
        self.predict_targets = nn.Linear(backbone.hidden_size, size)
        scale_by_depth(self.layers, first)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        init_beit_weights(module)


class BEiTV2Model(BEiTV1Model):
    """BEiT v2 (arXiv 2208.06366): `backbone` encodes all patches, masked or not, `neck` predicts the targets twice."""

    config_class = BEiTV2Config

    def build_neck(self, config: BEiTV2Config) -> nn.Module:
        return BEiTV2Neck(config, self.target_generator.size)

    def loss(
        self,
        pixel_values: torch.Tensor,
        *,
        bool_masked_pos: torch.Tensor | None = None,
        target_pixel_values: torch.Tensor | None = None,
    ) -> SSLLossOutput:
        """`mode="loss"`: the errors of both predictions, added. Takes what [`BEiTV1Model`] takes."""
        mask, _, masked_patches = self.split_patches(pixel_values, bool_masked_pos)
        last, aggregated = self._encode(pixel_values, mask)
        target = self.masked_targets(pixel_values, target_pixel_values, masked_patches)
        main, aggregation = (
            target_loss(self.predict_targets(self.backbone.layernorm(hidden_states), masked_patches), target)
            for hidden_states in (last, aggregated)
        )
        losses = {"main": main.detach(), "aggregation": aggregation.detach()}
        return SSLLossOutput(loss=main + aggregation, losses=losses)

    def predict_targets(self, tokens: torch.Tensor, masked_patches: torch.Tensor) -> torch.Tensor:
        return self.neck.predict_targets(take_patches(tokens[:, 1:], masked_patches))

    def _encode(self, pixel_values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens `(B, 1 + num_patches, D)` at the end of both paths, before the last norm.

        Layer by layer: a compiled backbone does not hand out its hidden states.
        """
        backbone, bias = self.backbone, None
        if backbone.shared_position_bias is not None:
            rows, columns = self.grid_size(pixel_values)
            size = {"interpolate_pos_encoding": True, "dim_size": 1 + rows * columns}
            bias = backbone.shared_position_bias((rows, columns), **size)

        def run(layer, hidden_states):
            resolution = pixel_values.shape[2:]
            return layer(hidden_states, bias, interpolate_pos_encoding=True, resolution=resolution)

        last = backbone.embeddings(pixel_values.to(backbone.dtype), bool_masked_pos=mask)
        for depth, layer in enumerate(backbone.layers, start=1):
            last = run(layer, last)
            if depth == self.config.early_layer:
                early = last
        aggregated = torch.cat([last[:, :1], early[:, 1:]], dim=1)
        for layer in self.neck.layers:
            aggregated = run(layer, aggregated)
        return last, aggregated


class BEiTV2ForImageClassification(BEiTV1ForImageClassification):
    """BEiT v2's encoder, without its mask token, with a linear classifier on its pooled features."""

    config_class = BEiTV2Config
