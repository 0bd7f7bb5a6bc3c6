"""What a model's name stands for: one of our models, of transformers, or of timm, as a folder, a Hub id or a timm architecture.

Configuration, weights and image processor are read here and nowhere else, by the same rules for evaluation, for
classifiers, and for a run that starts from given weights.
"""

import logging
import os
from typing import Any

from transformers import (
    MODEL_FOR_BACKBONE_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
)

from .configuration_utils import SSLConfig
from .data.processing import build_image_processor
from .modules.backbones import drop_trained_pooler
from .pretrained import check_finite, load_pretrained

logger = logging.getLogger(__name__)


def read_config(name_or_path: str | os.PathLike, **options) -> PreTrainedConfig:
    """The configuration of a model; that of a bare timm architecture, such as "resnet18", needs no network.

    Args:
        options: of `from_pretrained`, such as `revision` and `subfolder`.

    Raises:
        OSError: there is no such model.
        ValueError: it has no configuration that transformers can read.
    """
    name = os.fspath(name_or_path)
    if _is_timm_architecture(name):
        return TimmWrapperConfig(architecture=name)
    config = load_pretrained(AutoConfig, name, **options)
    if getattr(config, "model_args", None):
        config.model_args.pop("num_classes", None)  # recent timm writes it; transformers passes it itself
    return config


def load_model(
    auto_class: Any, name_or_path: str | os.PathLike, config: PreTrainedConfig | None = None, **options
) -> PreTrainedModel:
    """`auto_class.from_pretrained`, of a model whose backbone has all of its weights.

    Args:
        auto_class: an Auto class of transformers.
        config: what `read_config` returned, changed as the caller likes.

    Raises:
        OSError: there is no such model.
        ValueError: the model cannot be loaded, or weights of its backbone are missing or of other shapes. A pooler does
            not count, as few checkpoints have weights for it, nor do the norms of `load_feature_pyramid`. Or they hold NaN
            or infinity.
    """
    config = read_config(name_or_path, **options) if config is None else config
    name = _hub_id(os.fspath(name_or_path))
    model, info = load_pretrained(auto_class, name, config=config, output_loading_info=True, **options)
    new = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    if isinstance(config, SSLConfig):
        lacking = sorted(key for key in new if key.startswith("backbone."))
    else:
        lacking = sorted(key for key in new if not key.startswith(("pooler.", "hidden_states_norms.")))
    if lacking:
        raise ValueError(
            f"the checkpoint {name!r} lacks or does not fit {len(lacking)} tensors of its backbone, such as {lacking[0]}, "
            "which would be random weights: save the whole model with save_pretrained"
        )
    if not isinstance(config, SSLConfig):  # our models look themselves
        check_finite(model.state_dict(), f"the checkpoint {name}")
    return model


def load_backbone(
    name_or_path: str | os.PathLike, config: PreTrainedConfig | None = None, **options
) -> PreTrainedModel:
    """A plain backbone with its pretrained weights, in eval mode; of one of our models the `backbone` in it.

    A pooler with a linear layer, such as ViT's, is left out, as it is in the algorithms.

    Args:
        name_or_path, config, options: as in [`load_model`], which raises the same errors.
    """
    model = load_model(AutoModel, name_or_path, config, **options)
    backbone = model.backbone if isinstance(model.config, SSLConfig) else model
    drop_trained_pooler(backbone)
    return backbone


def load_feature_pyramid(name_or_path: str | os.PathLike) -> PreTrainedModel:
    """A pretrained backbone as detectors and segmenters of transformers take it: the class that `AutoBackbone` chooses.

    `outputs.feature_maps` has a map `(B, D, H, W)` a stage; of a transformer of many equal layers there are four, after a
    third, half, two thirds, and all of them. Swin and ConvNeXt get a new LayerNorm for each.

    Args:
        name_or_path: of a plain backbone, or of one of our models that was shared, for its folder `backbone/`.

    Raises:
        ValueError: transformers has no such class for the backbone; and as [`load_model`].
        OSError: there is no such model.
    """
    config, options = read_config(name_or_path), {}
    if isinstance(config, SSLConfig):
        options = {"subfolder": "backbone"}
        config = load_pretrained(AutoConfig, os.fspath(name_or_path), **options)
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        there = ", ".join(repr(each) for each in ("resnet", "swin", "swinv2", "convnext", "beit", "dinov2"))
        raise ValueError(
            f"transformers has no backbone of feature maps (AutoBackbone) for {config.model_type!r}, so its detectors and "
            f"segmenters cannot be built on {os.fspath(name_or_path)!r}: choose a backbone of {there}, or another of its list"
        )
    count = len(config.stage_names) - 1  # without the stem
    indices = range(1, count + 1) if count <= 4 else (count // 3, count // 2, 2 * count // 3, count)
    config.out_indices = list(indices)
    return load_model(MODEL_FOR_BACKBONE_MAPPING[type(config)], name_or_path, config, **options)


def load_image_processor(name_or_path: str | os.PathLike, config: PreTrainedConfig, **options) -> BaseImageProcessor:
    """The image processor that goes with a model; one of our models without a file of its own has the usual one.

    Raises:
        ValueError: the model has none.
    """
    name = os.fspath(name_or_path)
    if _is_timm_architecture(name):
        return _timm_image_processor(name)
    try:
        return AutoImageProcessor.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        if isinstance(config, SSLConfig):
            return build_image_processor(config.image_size, config.image_mean, config.image_std)
        raise ValueError(
            f"the model {name!r} has no image processor, so how its images are to be normalised is not known: save one "
            "beside it with AutoImageProcessor.save_pretrained"
        ) from error


def fields_around_backbone(name_or_path: str | os.PathLike, config: PreTrainedConfig, **options) -> dict[str, Any]:
    """Fields of an `SSLConfig` that a plain backbone decides: its own configuration, and how images are normalised.

    Args:
        name_or_path, config, options: as in [`load_model`].
    """
    fields: dict[str, Any] = {"backbone_config": config}
    try:
        processor = load_image_processor(name_or_path, config, **options)
    except ValueError as error:
        logger.warning("%s; until then they are normalised as the configuration says", error)
    else:
        fields["image_mean"], fields["image_std"] = image_statistics(processor)
    return fields


def image_statistics(processor: BaseImageProcessor) -> tuple[list[float], list[float]]:
    """Mean and deviation, a value a channel in units of [0, 1], that an image processor normalises with.

    Raises:
        ValueError: it does more to the colors than that.
    """
    if getattr(processor, "do_flip_channel_order", False):
        raise ValueError(
            f"{type(processor).__name__} swaps red and blue, which ssl_hub's images do not: choose a model for RGB images"
        )
    if data_config := getattr(processor, "data_config", None):  # timm's
        return list(data_config["mean"]), list(data_config["std"])
    if not getattr(processor, "do_normalize", True):
        return [0.0] * 3, [1.0] * 3
    return list(processor.image_mean), list(processor.image_std)


def _is_timm_architecture(name: str) -> bool:
    if os.path.exists(name) or "/" in name:
        return False
    import timm  # it takes a while to import

    return timm.is_model(name)


def _hub_id(name: str) -> str:
    """Where the weights are: those of an architecture of timm are on the Hub, in the repository that timm names."""
    if not _is_timm_architecture(name):
        return name
    import timm

    pretrained = timm.get_pretrained_cfg(name)
    if pretrained is None or not pretrained.hf_hub_id:
        raise ValueError(
            f"timm has no pretrained weights of {name!r}: choose an architecture of timm.list_pretrained()"
        )
    return pretrained.hf_hub_id


def _timm_image_processor(architecture: str) -> BaseImageProcessor:
    import timm
    from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

    pretrained = timm.get_pretrained_cfg(architecture)
    return TimmWrapperImageProcessor(pretrained.to_dict() if pretrained else {}, architecture)
