"""Checkpoints of the authors' own repositories under microsoft."""

import re

import torch

from .state_dicts import rename_keys

# by our model types
RULES = {
    "simmim": [
        (r"^encoder\.mask_token$", "backbone.embeddings.mask_token"),
        (r"^encoder\.absolute_pos_embed$", "backbone.embeddings.position_embeddings"),
        (r"^encoder\.patch_embed\.proj\.", "backbone.embeddings.patch_embeddings.projection."),
        (r"^encoder\.patch_embed\.norm\.", "backbone.embeddings.norm."),
        (r"^encoder\.norm\.", "backbone.layernorm."),
        (r"^encoder\.layers\.", "backbone.encoder.layers."),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"\.attn\.relative_", ".attention.relative_position_bias.relative_"),
        (r"\.attn\.qkv\.", ".attention.qkv."),
        (r"\.attn\.proj\.", ".attention.o_proj."),
        (r"^decoder\.0\.", "neck.predict_pixels."),
    ],
}


def convert_state_dict(model_type: str, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the tensors of a checkpoint of the authors (`checkpoint["model"]`) to ssl_hub's names.

    What is computed from the size of the windows is left out. Windows of the last stages are no larger than the feature
    map there: a Swin-L with windows of 12 at 192 pixels has smaller tables than MMSelfSup's, and does not fit.
    """
    computed = r".*\.(relative_position_index|attn_mask)"
    kept = {key: tensor for key, tensor in state_dict.items() if not re.fullmatch(computed, key)}
    return rename_keys(kept, RULES[model_type])
