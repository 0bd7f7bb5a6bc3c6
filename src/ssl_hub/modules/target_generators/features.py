"""Features of any vision model of transformers."""

import torch
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...pretrained import load_pretrained
from ..backbones import backbone_layout, build_backbone, feature_map, run_backbone
from .base import NetworkTargets


class FeatureTargets(NetworkTargets):
    """The last hidden state of an `AutoModel`: tokens of a square of patches, or a feature map.

    `target_options` need a size. Images are resized to what the network was trained with unless it has patches of one
    size; `network`, for a random one, names its `model_type`.
    """

    default_mean, default_std = tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)

    def build_network(self, fields: dict):
        from transformers import AutoConfig

        return build_backbone(AutoConfig.for_model(**fields))

    def load_network(self, name_or_path: str):
        from transformers import AutoModel

        network, info = load_pretrained(AutoModel, name_or_path, output_loading_info=True)
        # A pooler that the checkpoint lacks, such as a ViT's, has no part in the last hidden state.
        backbone_layout(network)  # found out here, not in a compiled step
        info["missing_keys"] = {key for key in info["missing_keys"] if not key.startswith("pooler.")}
        return network, info

    def default_image_size(self, network, num_patches: int) -> int:
        patch_size = getattr(network.config, "patch_size", None)
        if isinstance(patch_size, int) and not hasattr(network.config, "depths"):  # not one that merges patches
            return num_patches * patch_size
        return getattr(network.config, "image_size", 224)

    def compute(self, network, pixel_values: torch.Tensor) -> torch.Tensor:
        return feature_map(network, run_backbone(network, pixel_values).last_hidden_state).permute(0, 2, 3, 1)
