"""Backbones: any transformers vision model by its configuration, and one way to read what it returns."""

import functools
import inspect
import math

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer


def build_backbone(config: PreTrainedConfig, zero_init_residual: bool = False) -> PreTrainedModel:
    """Builds the plain transformers model of a configuration.

    Args:
        config: of any transformers vision model, or of a timm model (`TimmWrapperConfig`). A `ResNetConfig` with
            `stem="3x3"` gets a 3x3 convolution of stride 1 without max-pooling in front, for images of about 32 pixels.
        zero_init_residual: for a ResNet, whether the last BatchNorm of each block starts at zero, so that the block
            starts as the identity (arXiv 1706.02677).
    """
    from transformers import AutoModel  # not above: it is what imports our models

    backbone = AutoModel.from_config(config)
    # A pooler with a linear layer (ViT's, with tanh) belongs to supervised training, and would get no gradient.
    pooler = getattr(backbone, "pooler", None)
    if isinstance(pooler, nn.Module) and any(isinstance(module, nn.Linear) for module in pooler.modules()):
        backbone.pooler = None
    if getattr(config, "stem", None) == "3x3":
        convolution = backbone.embedder.embedder.convolution
        backbone.embedder.embedder.convolution = nn.Conv2d(
            convolution.in_channels, convolution.out_channels, kernel_size=3, padding=1, bias=False
        )
        backbone.embedder.pooler = nn.Identity()
        backbone.post_init()
    if zero_init_residual:
        for module in backbone.modules():
            if isinstance(module, ResNetBasicLayer | ResNetBottleNeckLayer):
                with torch.no_grad():
                    init.zeros_(module.layer[-1].normalization.weight)
    return backbone


def backbone_hidden_size(backbone: PreTrainedModel) -> int:
    """Number of features of a backbone's pooled output."""
    config = backbone.config
    if hasattr(backbone, "timm_model"):
        return backbone.timm_model.num_features
    return config.hidden_sizes[-1] if getattr(config, "hidden_sizes", None) else config.hidden_size


@functools.cache
def _interpolates_positions(backbone_class: type[PreTrainedModel]) -> bool:
    return "interpolate_pos_encoding" in inspect.signature(backbone_class.forward).parameters


def run_backbone(backbone: PreTrainedModel, pixel_values: torch.Tensor, **kwargs):
    """Calls a backbone; one with position embeddings for a size of its own interpolates them to the images'."""
    if _interpolates_positions(type(backbone)):
        kwargs["interpolate_pos_encoding"] = True
    return backbone(pixel_values, **kwargs)


def pool_features(outputs, pooling: str) -> torch.Tensor:
    """Pools what a backbone returned.

    Args:
        outputs: with a `pooler_output` of the backbone's own (ResNet, ConvNeXt, Swin, timm), which is taken, or with
            tokens `(B, 1 + L, D)` as `last_hidden_state`, the class token first.
        pooling: `"cls"` or `"mean"` (of the patch tokens).

    Returns:
        `torch.Tensor`: features `(B, D)`.
    """
    if getattr(outputs, "pooler_output", None) is not None:
        return outputs.pooler_output.flatten(1)
    tokens = outputs.last_hidden_state
    if tokens.ndim == 4:
        return tokens.mean(dim=(2, 3))
    return tokens[:, 0] if pooling == "cls" else tokens[:, 1:].mean(dim=1)


def feature_map(outputs) -> torch.Tensor:
    """The last feature map `(B, D, H, W)` of a backbone; patch tokens are put in their places, without class token."""
    hidden = outputs.last_hidden_state
    if hidden.ndim == 4:
        return hidden
    if hidden.ndim == 3:
        for skip in (0, 1):
            side = math.isqrt(hidden.shape[1] - skip)
            if side**2 == hidden.shape[1] - skip:
                return hidden[:, skip:].transpose(1, 2).unflatten(2, (side, side))
    raise ValueError(
        "this algorithm needs a backbone with a feature map, or with the tokens of a square of patches; its last hidden "
        f"state has the shape {tuple(hidden.shape)}. A timm model that only returns pooled features does not fit."
    )


def no_weight_decay_names(backbone: PreTrainedModel) -> set[str]:
    """Placeholder until the backbones' own rule is merged."""
    return set()
