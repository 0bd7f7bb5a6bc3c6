"""Checkpoints of the authors' own repositories under facebookresearch."""

import torch

from .state_dicts import rename_keys

# timm's VisionTransformer, as the official MAE code extends it.
TIMM_VIT_LAYER_RULES = [
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.qkv\.", ".attention.qkv."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
]

MAE_RULES = [
    (r"^decoder_embed\.", "neck.embed."),
    (r"^mask_token$", "neck.mask_token"),
    (r"^decoder_pos_embed$", "neck.position_embeddings"),
    (r"^decoder_blocks\.", "neck.layers."),
    (r"^decoder_norm\.", "neck.layernorm."),
    (r"^decoder_pred\.", "neck.predict_pixels."),
    (r"^cls_token$", "backbone.embeddings.cls_token"),
    (r"^pos_embed$", "backbone.embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "backbone.embeddings.patch_embeddings.projection."),
    (r"^blocks\.", "backbone.layers."),
    (r"^norm\.", "backbone.layernorm."),
    *TIMM_VIT_LAYER_RULES,
]


def convert_mae_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the tensors of an official MAE checkpoint (`checkpoint["model"]`) to ssl_hub's names.

    The position tables come along: the official ones have the column in the first half of the channels, ours the row.
    """
    return rename_keys(state_dict, MAE_RULES)
