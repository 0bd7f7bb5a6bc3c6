"""Models whose features are evaluated: those of this package, and any of transformers or timm, read alike."""

import os

import torch
from torch import nn
from transformers import AutoModel, BaseImageProcessor, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..configuration_utils import SSLConfig
from ..data.processing import build_image_processor
from ..model_loading import load_image_processor, load_model, read_config
from ..modeling_utils import SSLModel
from ..modules.backbones import backbone_layout, build_backbone, drop_trained_pooler, feature_map, run_backbone


class BackboneFeatures(nn.Module):
    """Gives a plain backbone the call of the algorithms: `model(pixel_values)` with `pooler_output` `(B, D)`.

    A pooler with a linear layer, such as ViT's, is left out, as it is in the algorithms: it belongs to supervised
    training, and few checkpoints have weights for it.

    Args:
        backbone: any vision model of transformers, or timm's inside of `TimmWrapperModel`.
        pooling: as in [`run_backbone`].

    Raises:
        ValueError: the model does not make features of images.
    """

    def __init__(self, backbone: PreTrainedModel, pooling: str = "cls"):
        super().__init__()
        drop_trained_pooler(backbone)
        backbone_layout(backbone)
        self.backbone, self.pooling = backbone, pooling

    @property
    def config(self):
        return self.backbone.config

    def set_attn_implementation(self, name: str) -> None:
        self.backbone.set_attn_implementation(name)

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        return run_backbone(self.backbone, pixel_values, self.pooling, **kwargs)


class PixelFeatures(nn.Module):
    """The baseline that has learned nothing: its features are the pixels `(B, C * S * S)`."""

    def forward(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(pooler_output=pixel_values.flatten(1))


def load_feature_model(
    name_or_path: str | os.PathLike, pooling: str | None = None
) -> tuple["SSLModel | BackboneFeatures", BaseImageProcessor]:
    """Loads a model for its features, in eval mode, and the image processor that goes with it.

    Args:
        name_or_path: a folder or a Hub id of one of our models or of any vision model of transformers or timm; or the
            name of a timm architecture, such as "resnet18", for its pretrained weights.
        pooling: `"cls"` or `"mean"`, instead of what one of our models was trained with; of others `"cls"` is the
            default. It is for backbones that do not pool by themselves.

    Raises:
        OSError: there is no such model.
        ValueError: the model cannot be loaded, lacks weights that its features depend on, has no image processor, or
            makes no features of images.
    """
    config = read_config(name_or_path)
    model = load_model(AutoModel, name_or_path, config)
    if not isinstance(config, SSLConfig):
        model = BackboneFeatures(model, pooling or "cls")
    elif pooling is not None:
        model.config.pooling = pooling
    return model.eval(), load_image_processor(name_or_path, config)


def untrained_model(model: "SSLModel | BackboneFeatures", seed: int = 0) -> "SSLModel | BackboneFeatures":
    """A model like one of `load_feature_model`, with newly drawn weights: what the training has added shows beside it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(model, BackboneFeatures):
            return BackboneFeatures(build_backbone(model.config), model.pooling).eval()
        return AutoModel.from_config(model.config).eval()


def pixel_baseline() -> tuple[PixelFeatures, BaseImageProcessor]:
    """[`PixelFeatures`] of images of 16 x 16 pixels, and the image processor that makes these."""
    return PixelFeatures(), build_image_processor(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), crop_ratio=1.0)


def patch_tokens(model: "SSLModel | BackboneFeatures", last_hidden_state: torch.Tensor) -> torch.Tensor:
    """The tokens `(B, H * W, D)` of the patches, row by row, or the same of a feature map.

    Args:
        model: what `load_feature_model` returned.
        last_hidden_state: of its output.

    Raises:
        ValueError: the model has neither, or the images were not square.
    """
    return feature_map(model.backbone, last_hidden_state).flatten(2).transpose(1, 2)
