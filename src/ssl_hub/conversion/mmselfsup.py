"""Checkpoints and configurations of MMSelfSup 1.x (with mmcls 1.0 backbones)."""

import torch

from ..configuration_utils import SSLConfig
from ..models.mae.configuration_mae import MAEConfig
from .state_dicts import rename_keys

VIT_LAYER_RULES = [
    (r"\.ln1\.", ".layernorm_before."),
    (r"\.ln2\.", ".layernorm_after."),
    (r"\.attn\.qkv\.", ".attention.qkv."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
]

VIT_RULES = [
    (r"^backbone\.cls_token$", "backbone.embeddings.cls_token"),
    (r"^backbone\.pos_embed$", "backbone.embeddings.position_embeddings"),
    (r"^backbone\.patch_embed\.", "backbone.embeddings.patch_embeddings."),
    (r"^backbone\.ln1\.", "backbone.layernorm."),
    *VIT_LAYER_RULES,
]

RULES = {
    "MAE": [
        (r"^neck\.decoder_embed\.", "neck.embed."),
        (r"^neck\.decoder_pos_embed$", "neck.position_embeddings"),
        (r"^neck\.decoder_pred\.", "neck.predict_pixels."),
        (r"^neck\.ln1\.", "neck.layernorm."),
        (r"^neck\.decoder_blocks\.", "neck.layers."),
        *VIT_RULES,
    ],
}

# mmcls' VisionTransformer: embed_dims, num_layers, num_heads, feedforward_channels
VIT_ARCHS = {
    "s": (768, 8, 8, 2304),
    "small": (768, 8, 8, 2304),
    "b": (768, 12, 12, 3072),
    "base": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "large": (1024, 24, 16, 4096),
    "h": (1280, 32, 16, 5120),
    "huge": (1280, 32, 16, 5120),
    "deit-t": (192, 12, 3, 768),
    "deit-tiny": (192, 12, 3, 768),
    "deit-s": (384, 12, 6, 1536),
    "deit-small": (384, 12, 6, 1536),
    "deit-b": (768, 12, 12, 3072),
    "deit-base": (768, 12, 12, 3072),
}


def convert_state_dict(algorithm: str, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the tensors of an MMSelfSup checkpoint (`checkpoint["state_dict"]`) to ssl_hub's names.

    Args:
        algorithm: MMSelfSup's class name, such as `"MAE"`.
    """
    if algorithm not in RULES:
        raise ValueError(f"no conversion of MMSelfSup's {algorithm!r}; there is one for {', '.join(RULES)}")
    return rename_keys(state_dict, RULES[algorithm])


def convert_config(config: dict) -> SSLConfig:
    """Translates the `model` section of an MMSelfSup 1.x configuration, as a plain dict."""
    converters = {"MAE": _mae_config}
    if config["type"] not in converters:
        raise ValueError(f"no conversion of MMSelfSup's {config['type']!r}; there is one for {', '.join(converters)}")
    return converters[config["type"]](config)


def _vit_fields(backbone: dict) -> dict:
    arch = backbone.get("arch", "b")
    if isinstance(arch, str):
        width, depth, heads, mlp_width = VIT_ARCHS[arch]
    else:
        width, depth, heads = arch["embed_dims"], arch["num_layers"], arch["num_heads"]
        mlp_width = arch["feedforward_channels"]
    return {
        "model_type": "vit",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": mlp_width,
        "image_size": backbone.get("img_size", 224),
        "patch_size": backbone.get("patch_size", 16),
        "num_channels": backbone.get("in_channels", 3),
        "qkv_bias": backbone.get("qkv_bias", True),
        "layer_norm_eps": 1e-6,
    }


def _mae_config(config: dict) -> MAEConfig:
    backbone, neck, head = config["backbone"], config["neck"], config["head"]
    width = neck.get("decoder_embed_dim", 512)
    return MAEConfig(
        backbone_config=_vit_fields(backbone),
        mask_ratio=backbone.get("mask_ratio", 0.75),
        norm_pix_loss=head.get("norm_pix", False),
        decoder_hidden_size=width,
        decoder_num_hidden_layers=neck.get("decoder_depth", 8),
        decoder_num_attention_heads=neck.get("decoder_num_heads", 16),
        decoder_intermediate_size=int(width * neck.get("mlp_ratio", 4)),
        **_normalisation(config),
    )


def _normalisation(config: dict) -> dict:
    preprocessor = config.get("data_preprocessor", {})
    if "mean" not in preprocessor:
        return {}
    return {
        "image_mean": [value / 255 for value in preprocessor["mean"]],
        "image_std": [value / 255 for value in preprocessor["std"]],
    }
