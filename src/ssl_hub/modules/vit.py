"""The ViT of MAE, MoCo v3 and CAE: fixed sine-cosine positions, and patches that can be dropped."""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.vit.modeling_vit import ViTEmbeddings, ViTModel
from transformers.utils.output_capturing import capture_outputs

from .backbones import PlainCheckpointMixin
from .position_embeddings import sincos_position_embedding_2d


def init_sincos_positions(module: nn.Module) -> None:
    """Fills `module.position_embeddings` `(1, 1 + L, D)`, for `_init_weights`."""
    positions = module.position_embeddings
    grid_size = math.isqrt(positions.shape[1] - 1)
    init.copy_(positions, sincos_position_embedding_2d(grid_size, positions.shape[2], cls_token=True))


class FixedPositionViTEmbeddings(ViTEmbeddings):
    """ViT's embeddings with positions that are not trained."""

    def __init__(self, config):
        super().__init__(config)
        # A buffer under the same name: the checkpoint stays a ViT's, and loading one cannot make the table trainable.
        shape = self.position_embeddings.shape
        del self.position_embeddings
        self.register_buffer("position_embeddings", torch.zeros(shape))

    def forward(self, pixel_values: torch.Tensor, visible_patches: torch.Tensor | None = None) -> torch.Tensor:
        embeddings = super().forward(pixel_values, interpolate_pos_encoding=True)
        if visible_patches is None:
            return embeddings
        index = visible_patches[..., None].expand(-1, -1, embeddings.shape[-1])
        return torch.cat([embeddings[:, :1], embeddings[:, 1:].gather(1, index)], dim=1)


class FixedPositionViTModel(PlainCheckpointMixin, ViTModel):
    """A `ViTModel` with fixed positions whose checkpoint is one of a plain `ViTModel`."""

    def __init__(self, config):
        super().__init__(config, add_pooling_layer=False)
        self.embeddings = FixedPositionViTEmbeddings(config)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, visible_patches: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Encodes images.

        Args:
            pixel_values: `(B, C, H, W)`; positions are interpolated to an `H` and `W` other than `config.image_size`.
            visible_patches: indices `(B, V)` of the patches to keep; all by default. Dropped ones cost nothing.

        Returns:
            `last_hidden_state` `(B, 1 + V, hidden_size)`, the class token first.
        """
        height, width = pixel_values.shape[-2:]
        patch_size = self.config.patch_size
        if height % patch_size != 0 or width % patch_size != 0:
            raise ValueError(
                f"the patch size {patch_size} must divide the height and width of the images; got {height} x {width}. "
                "Resize or crop them, as the model's image processor does."
            )
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        hidden_states = self.embeddings(pixel_values, visible_patches)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=self.layernorm(hidden_states))
