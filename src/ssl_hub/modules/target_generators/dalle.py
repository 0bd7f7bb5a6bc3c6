"""The visual tokens of DALL-E."""

import torch

from ...pretrained import load_pretrained
from .base import NetworkTargets


class DALLETargets(NetworkTargets):
    """Tokens of DALL-E's discrete VAE (arXiv 2102.12092), one for 8 x 8 pixels: BEiT's and CAE's targets.

    The network is transformers' `FlavaImageCodebook`, its released weights `facebook/flava-image-codebook`. It takes
    pixels from 0.1 to 0.9: `0.8 * x + 0.1`.
    """

    is_discrete = True
    default_size = 8192
    default_mean, default_std = (-0.125,) * 3, (1.25,) * 3

    def build_network(self, fields: dict):
        from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

        return FlavaImageCodebook(FlavaImageCodebookConfig(**{"vocab_size": self.size, **fields}))

    def load_network(self, name_or_path: str):
        from transformers import FlavaImageCodebook

        return load_pretrained(FlavaImageCodebook, name_or_path, output_loading_info=True)

    def default_image_size(self, network, num_patches: int) -> int:
        return 8 * num_patches

    def compute(self, network, pixel_values: torch.Tensor) -> torch.Tensor:
        # All but the last convolution in half precision on a GPU, as DALL-E's own code.
        with torch.autocast(pixel_values.device.type, torch.float16, enabled=pixel_values.is_cuda):
            hidden = network.blocks[:-1](pixel_values)
        return network.blocks[-1](hidden.float()).argmax(dim=1)
