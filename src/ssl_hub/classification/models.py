"""An image classifier on any backbone: of a checkpoint of ssl_hub, of transformers, or of timm."""

from collections.abc import Iterable
from pathlib import Path

import timm
import torch
from timm.layers import DropPath
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    TimmWrapperConfig,
)
from transformers.models.vit.modeling_vit import ViTLayer

from ..configuration_utils import BackboneConfig, SSLConfig
from ..modeling_utils import BackboneForImageClassification, SSLForImageClassification
from ..modules.backbones import describe
from ..pretrained import load_pretrained


def load_classifier(
    name_or_path: str,
    label_names: list[str],
    *,
    from_scratch: bool = False,
    freeze_backbone: bool = False,
    drop_path_rate: float | None = None,
    **fields,
) -> SSLForImageClassification:
    """Makes a classifier of images on the backbone of a checkpoint; the classifier itself is new.

    Args:
        name_or_path: a folder or a Hub id: of a model of ssl_hub, of any vision model of transformers, of a model of timm
            (`timm/resnet50.a1_in1k`); or the bare name of an architecture of timm, for its default weights.
        label_names: of the classes, in their order.
        from_scratch: takes the architecture alone.
        freeze_backbone: trains the classifier alone.
        drop_path_rate: of stochastic depth, rising linearly over the blocks up to this rate (arXiv 1603.09382); by
            default what the model's configuration says.
        fields: of the configuration: `pooling`, `image_size`, and those that begin with `classifier_`.

    Raises:
        ValueError: the model is none of images, or lacks what the fields ask for.
        OSError: there is no such model.
    """
    config = _read_config(name_or_path)
    labels = {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}}
    fields = {name: value for name, value in fields.items() if value is not None} | labels
    is_ours = isinstance(config, SSLConfig)
    backbone_config = config.backbone_config if is_ours else config
    if drop_path_rate is not None:
        _set_drop_path(backbone_config, drop_path_rate)
    if is_ours:
        for name, value in fields.items():
            setattr(config, name, value)
        if from_scratch:
            model = AutoModelForImageClassification.from_config(config)
        else:
            model, info = load_pretrained(
                AutoModelForImageClassification,
                name_or_path,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # a classifier of other classes is made anew
            )
            _check_complete(name_or_path, info["missing_keys"])
    else:
        statistics = _statistics(name_or_path, config)
        model = BackboneForImageClassification(BackboneConfig(backbone_config=config, **statistics, **fields))
        if not from_scratch:
            state, not_found = _pretrained_state(name_or_path, config)
            # A pooler, or the norm that gave way to the classifier's, is not there any more.
            missing, _ = model.backbone.load_state_dict(state, strict=False)
            _check_complete(name_or_path, [*missing, *(not_found & model.backbone.state_dict().keys())])
    if drop_path_rate is not None:
        _drop_paths_of_vit(model.backbone, drop_path_rate)
    model.backbone.requires_grad_(not freeze_backbone)
    return model


def _read_config(name_or_path: str) -> PreTrainedConfig:
    if not Path(name_or_path).exists() and timm.is_model(name_or_path):
        return TimmWrapperConfig(architecture=name_or_path)
    return load_pretrained(AutoConfig, name_or_path)


def _statistics(name_or_path: str, config: PreTrainedConfig) -> dict:
    """Mean and deviation that a model's images are normalised with; those of ImageNet where it does not say."""
    if isinstance(config, TimmWrapperConfig):
        pretrained = timm.get_pretrained_cfg(config.architecture)
        return {"image_mean": pretrained.mean, "image_std": pretrained.std} if pretrained else {}
    try:
        processor = AutoImageProcessor.from_pretrained(name_or_path)
    except (OSError, ValueError):  # without a file, or one that transformers knows
        return {}
    return {"image_mean": processor.image_mean, "image_std": processor.image_std}


def _pretrained_state(name_or_path: str, config: PreTrainedConfig) -> tuple[dict, set[str]]:
    """The tensors of a backbone, and the names of those that its checkpoint lacks, which are new."""
    if isinstance(config, TimmWrapperConfig) and not Path(name_or_path).exists() and timm.is_model(name_or_path):
        model = timm.create_model(name_or_path, pretrained=True, num_classes=0)
        return {f"timm_model.{name}": tensor for name, tensor in model.state_dict().items()}, set()
    model, info = load_pretrained(AutoModel, name_or_path, config=config, output_loading_info=True)
    return model.state_dict(), set(info["missing_keys"])


def _check_complete(name_or_path: str, missing: Iterable[str]) -> None:
    missing = [name for name in missing if not name.startswith("classifier")]
    if missing:
        raise ValueError(
            f"{name_or_path} lacks {len(missing)} tensors of its backbone ({', '.join(missing[:3])}, ...): it is no "
            "checkpoint of that model"
        )


def _set_drop_path(config: PreTrainedConfig, rate: float) -> None:
    if isinstance(config, TimmWrapperConfig):
        config.model_args = {**(config.model_args or {}), "drop_path_rate": rate}
    elif hasattr(config, "drop_path_rate"):
        config.drop_path_rate = rate


def _drop_paths_of_vit(backbone: nn.Module, rate: float) -> None:
    """A ViT of transformers has no stochastic depth, but a dropout at the end of each of its branches."""
    layers = [module for module in backbone.modules() if isinstance(module, ViTLayer)]
    if not layers and not hasattr(backbone.config, "drop_path_rate") and not hasattr(backbone, "timm_model"):
        raise ValueError(f"{describe(backbone)} has no stochastic depth: leave drop_path_rate out")
    for layer, each in zip(layers, torch.linspace(0, rate, len(layers)).tolist(), strict=True):
        layer.dropout = DropPath(each)
