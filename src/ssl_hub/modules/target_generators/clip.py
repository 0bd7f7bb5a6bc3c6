"""Features of CLIP."""

import torch
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ...pretrained import load_pretrained
from .base import NetworkTargets


class CLIPTargets(NetworkTargets):
    """Projected features of CLIP's patches (arXiv 2103.00020), such as MILAN and EVA predict: `CLIPVisionModelWithProjection`."""

    default_size = 512  # of ViT-B
    default_mean, default_std = tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD)

    def build_network(self, fields: dict):
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        return CLIPVisionModelWithProjection(CLIPVisionConfig(**{"projection_dim": self.size, **fields}))

    def load_network(self, name_or_path: str):
        from transformers import CLIPVisionModelWithProjection

        return load_pretrained(CLIPVisionModelWithProjection, name_or_path, output_loading_info=True)

    def default_image_size(self, network, num_patches: int) -> int:
        return num_patches * network.config.patch_size

    def compute(self, network, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens = self._encode(network, pixel_values).last_hidden_state[:, 1:]
        features = network.visual_projection(network.vision_model.post_layernorm(tokens))
        return features.unflatten(1, self._grid(network, pixel_values))

    @torch.no_grad()
    def attention(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """How much the class token attends to each patch in the last layer, on average over the heads.

        Args:
            pixel_values: the model's normalised images `(B, C, H, W)`.

        Returns:
            `torch.FloatTensor` of shape `(B, num_patches)`, patches row by row.
        """
        network = self.network(pixel_values.device)
        implementation = network.config._attn_implementation
        network.set_attn_implementation("eager")  # the others do not tell
        outputs = self._encode(network, self.resize(network, pixel_values), output_attentions=True)
        network.set_attn_implementation(implementation)
        return outputs.attentions[-1].mean(dim=1)[:, 0, 1:]

    def _encode(self, network, pixel_values: torch.Tensor, **kwargs):
        return network.vision_model(pixel_values, interpolate_pos_encoding=True, **kwargs)

    def _grid(self, network, pixel_values: torch.Tensor) -> tuple[int, int]:
        patch_size = network.config.patch_size
        return pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size
