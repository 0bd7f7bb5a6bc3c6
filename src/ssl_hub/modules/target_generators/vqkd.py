"""The visual tokens of BEiT v2."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BeitConfig, BeitModel, BeitPreTrainedModel
from transformers import initialization as init

from ...pretrained import load_pretrained
from .base import NetworkTargets


class VQKDTokenizer(BeitPreTrainedModel):
    """The encoder of vector-quantized knowledge distillation (arXiv 2208.06366): a ViT, a projection, and a codebook.

    Args:
        config: of the ViT; its `vocab_size` is the number of codes, and `code_size` (default 32) their width.
    """

    base_model_prefix = "encoder"

    def __init__(self, config: BeitConfig):
        super().__init__(config)
        code_size = getattr(config, "code_size", 32)
        self.encoder = BeitModel(config, add_pooling_layer=False)
        self.projection = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size), nn.Tanh(), nn.Linear(config.hidden_size, code_size)
        )
        self.codebook = nn.Parameter(torch.zeros(config.vocab_size, code_size))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self:
            init.normal_(self.codebook)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The tokens `(B, num_patches)` of images: of each patch the code whose direction is nearest."""
        patches = self.encoder(pixel_values).last_hidden_state[:, 1:]
        codes = F.normalize(self.projection(patches), dim=-1)
        return (codes @ F.normalize(self.codebook, dim=-1).T).argmax(dim=-1)


class VQKDTargets(NetworkTargets):
    """Tokens of VQ-KD, one a patch: the targets of BEiT v2 (arXiv 2208.06366).

    The network is a `VQKDTokenizer`. `ssl_hub.conversion.microsoft.convert_tokenizer` makes its folder of the authors'
    file. It takes pixels from -1 to 1.
    """

    is_discrete = True
    default_size = 8192
    default_mean, default_std = (0.5,) * 3, (0.5,) * 3

    def build_network(self, fields: dict):
        return VQKDTokenizer(BeitConfig(**{**tokenizer_fields(), "vocab_size": self.size, **fields}))

    def load_network(self, name_or_path: str):
        return load_pretrained(VQKDTokenizer, name_or_path, output_loading_info=True)

    def default_image_size(self, network, num_patches: int) -> int:
        return num_patches * network.config.patch_size

    def compute(self, network, pixel_values: torch.Tensor) -> torch.Tensor:
        patch_size = network.config.patch_size
        grid = pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size
        return network(pixel_values).unflatten(1, grid)


def tokenizer_fields() -> dict:
    """What the configuration of the authors' ViT has beside the sizes of ViT-B/16: absolute positions, no scales."""
    return {
        "use_absolute_position_embeddings": True,
        "use_relative_position_bias": False,
        "use_shared_relative_position_bias": False,
        "use_mean_pooling": False,
        "use_mask_token": False,
        "layer_scale_init_value": 0.0,
        "layer_norm_eps": 1e-6,
    }
