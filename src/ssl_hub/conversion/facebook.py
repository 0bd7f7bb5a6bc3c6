"""Checkpoints of the authors' own repositories under facebookresearch."""

import torch

from .state_dicts import RESNET_RULES, rename_keys, turn_queues

# timm's VisionTransformer, in any module that is a `backbone` already, and the layers of MAE's decoder.
TIMM_VIT_RULES = [
    (r"\bbackbone\.cls_token$", "backbone.embeddings.cls_token"),
    (r"\bbackbone\.pos_embed$", "backbone.embeddings.position_embeddings"),
    (r"\bbackbone\.patch_embed\.proj\.", "backbone.embeddings.patch_embeddings.projection."),
    (r"\bbackbone\.blocks\.", "backbone.layers."),
    (r"\bbackbone\.norm\.", "backbone.layernorm."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.qkv\.", ".attention.qkv."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
]


def _mlp_rule(pattern: str, target: str) -> tuple:
    """For an `nn.Sequential` of linear layer, BatchNorm, ReLU, linear layer, ..., which is a `NonLinearNeck` here."""

    def replacement(match):
        layer, kind = divmod(int(match["index"]), 3)
        return f"{target}.{('fc', 'bn')[kind]}{layer}."

    return pattern + r"\.(?P<index>\d+)\.", replacement


# by our model types
RULES = {
    "barlowtwins": [
        (r"^module\.backbone\.", "backbone."),
        _mlp_rule(r"^module\.projector", "neck"),
        (r"^module\.bn\.", "head.bn."),
        # the file of the ResNet-50 alone
        (r"^(conv1|bn1|layer\d)\.", r"backbone.\1."),
        *RESNET_RULES,
    ],
    "mae": [
        (r"^decoder_embed\.", "neck.embed."),
        (r"^mask_token$", "neck.mask_token"),
        (r"^decoder_pos_embed$", "neck.position_embeddings"),
        (r"^decoder_blocks\.", "neck.layers."),
        (r"^decoder_norm\.", "neck.layernorm."),
        (r"^decoder_pred\.", "neck.predict_pixels."),
        (r"^(cls_token$|pos_embed$|patch_embed\.|blocks\.|norm\.)", r"backbone.\1"),
        *TIMM_VIT_RULES,
    ],
    "moco": [
        (r"^module\.queue$", "memory.vectors"),
        (r"^module\.queue_ptr$", "memory.pointer"),
        (r"^module\.encoder_q\.", "backbone."),
        (r"^module\.encoder_k\.", "teacher.backbone."),
        (r"\bbackbone\.fc\.(weight|bias)$", r"neck.fc.\1"),
        (r"\bbackbone\.fc\.([02])\.", r"neck.mlp.\1."),
        *RESNET_RULES,
    ],
    "mocov3": [
        (r"^module\.base_encoder\.", "backbone."),
        (r"^module\.momentum_encoder\.", "teacher.backbone."),
        _mlp_rule(r"\bbackbone\.(fc|head)", "neck"),  # of a ResNet or a ViT
        _mlp_rule(r"^module\.predictor", "head.predictor"),
        *TIMM_VIT_RULES,
        *RESNET_RULES,
    ],
    "simsiam": [
        _mlp_rule(r"^module\.encoder\.fc", "neck"),
        (r"^module\.encoder\.", "backbone."),
        _mlp_rule(r"^module\.predictor", "head.predictor"),
        *RESNET_RULES,
    ],
    "swav": [
        (r"^module\.projection_head\.", "neck.projection_neck."),
        (r"^module\.prototypes\.", "head.prototypes."),
        (r"^module\.", "backbone."),
        *RESNET_RULES,
    ],
}


def convert_state_dict(model_type: str, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the tensors of a checkpoint of the authors (`checkpoint["model"]` or `["state_dict"]`) to ssl_hub's names.

    Position tables come along: MAE's official ones have the column in the first half of the channels, ours the row.

    Args:
        model_type: of the algorithm, a key of `RULES`.
    """
    renamed = turn_queues(rename_keys(state_dict, RULES[model_type]))
    if model_type == "simsiam" and {"neck.fc2.bias", "neck.bn2.running_mean"} <= renamed.keys():
        # Frozen at its first values there; the BatchNorm after it takes it away again.
        renamed["neck.bn2.running_mean"] = renamed["neck.bn2.running_mean"] - renamed.pop("neck.fc2.bias")
    return renamed
