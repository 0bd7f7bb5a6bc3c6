"""Comparing the features of a converted model with those of the other library's own model of the same file."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig

from ..modeling_utils import SSLModel
from . import transformers_models
from .backbones import timm_arguments
from .renaming import Layout

TOLERANCE = 1e-5

# The first layer of a backbone: its name in timm, and with us. What comes before it in a file is the backbone's prefix.
_FIRST_LAYERS = {
    "resnet": ("conv1.", "backbone.embedder.embedder.convolution."),
    **dict.fromkeys(("vit", "beit", "swin"), ("patch_embed.proj.", "backbone.embeddings.patch_embeddings.projection.")),
}


@torch.no_grad()
def compare_features(
    model: SSLModel, layout: Layout, state_dict: Mapping[str, torch.Tensor], path: str | Path
) -> float | None:
    """The largest absolute difference between our features of a made image and theirs, in double precision.

    Args:
        model: what the checkpoint was converted to.
        layout: that of the checkpoint.
        state_dict: under the names of the source.
        path: of the checkpoint.

    Returns:
        None where no other library that is installed has this model under these names.

    Raises:
        ValueError: it is more than `TOLERANCE`, or the other library cannot read the file.
    """
    if layout.source == "transformers":
        theirs = _transformers_features(path)
    else:
        theirs = _timm_features(model, layout, state_dict)
    if theirs is None:
        return None
    ours = copy.deepcopy(model.backbone).double().eval()
    size, channels = model.config.image_size, ours.config.num_channels
    image = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0)).double()
    difference = (ours(image).last_hidden_state - theirs(image)).abs().max().item()
    if not difference <= TOLERANCE:
        raise ValueError(
            f"the features of the converted model differ by {difference:.1e} from those of the original, and at most "
            f"{TOLERANCE:.0e} is rounding: is the recipe's model the one of {path}?"
        )
    return difference


def _timm_features(
    model: SSLModel, layout: Layout, state_dict: Mapping[str, torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    config = model.backbone.config
    theirs, ours = _FIRST_LAYERS.get(config.model_type, ("", ""))
    prefixes = [
        pair[0][: -len(theirs)]
        for pair in layout.pairs
        if theirs and pair[1] == ours and pair[0].endswith(theirs) and f"{pair[0]}weight" in state_dict
    ]
    if not prefixes:
        return None
    from timm.models import swin_transformer  # it takes a while to import

    network = _timm_network(config, model.config.image_size)
    if network is None:
        return None
    backbone = {key[len(prefixes[0]) :]: x for key, x in state_dict.items() if key.startswith(prefixes[0])}
    if config.model_type == "swin":
        backbone = swin_transformer.checkpoint_filter_fn(backbone, network)
    missing, _ = network.load_state_dict(backbone, strict=False)
    if missing:
        raise ValueError(f"timm finds no {', '.join(missing[:5])} in the file to compare features with")
    network = network.double().eval()
    if config.model_type == "swin":
        return lambda image: network.forward_features(image).flatten(1, 2)
    return network.forward_features


def _timm_network(config: PreTrainedConfig, image_size: int) -> nn.Module | None:
    from timm.models.beit import Beit
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.vision_transformer import VisionTransformer

    arguments = {**timm_arguments(config), "in_chans": config.num_channels, "num_classes": 0}
    if config.model_type == "resnet":
        if config.embedding_size != 64:  # which is fixed in timm
            return None
        return ResNet(BasicBlock if config.layer_type == "basic" else Bottleneck, **arguments)
    arguments["img_size"] = image_size
    if config.model_type == "swin":
        return SwinTransformer(**arguments)
    return (Beit if config.model_type == "beit" else VisionTransformer)(**arguments, global_pool="token")


def _transformers_features(path: str | Path) -> Callable[[torch.Tensor], torch.Tensor]:
    original = transformers_models.load_model(path).double().eval()
    if original.config.model_type != "vit_mae":
        return lambda image: original.base_model(image).last_hidden_state
    original.config.mask_ratio = 0.0
    patches = original.vit.embeddings.patch_embeddings.num_patches
    noise = torch.arange(patches)[None]  # so that the patches stay in their order
    return lambda image: original.vit(image, noise=noise).last_hidden_state
