"""An image classifier on any backbone: of a checkpoint of ssl_hub, of transformers, or of timm."""

import torch
from timm.layers import DropPath
from torch import nn
from transformers import AutoModelForImageClassification, BaseImageProcessor, PreTrainedConfig, TimmWrapperConfig
from transformers.models.vit.modeling_vit import ViTLayer

from ..configuration_utils import BackboneConfig, SSLConfig
from ..data.processing import build_image_processor
from ..model_loading import image_statistics, load_backbone, load_image_processor, load_model, read_config
from ..modeling_utils import BackboneForImageClassification, SSLForImageClassification
from ..modules.backbones import check_image_size, describe
from .arguments import Arguments
from .data import LabelledImages, load_labelled_images


def load_images_and_classifier(
    arguments: Arguments, freeze_backbone: bool
) -> tuple[LabelledImages, LabelledImages, SSLForImageClassification, BaseImageProcessor]:
    """What every protocol begins with: the training images, the test images, the classifier, and the processor of the latter.

    Args:
        freeze_backbone: for a linear evaluation.

    Raises:
        ValueError, OSError: see [`load_labelled_images`] and [`load_classifier`].
    """
    model_args, _, data_args, args = arguments
    train_images, test_images, names = load_labelled_images(data_args, args.seed)
    torch.manual_seed(args.seed)
    fields = {name: value for name, value in vars(model_args).items() if name.startswith(("pooling", "classifier_"))}
    model = load_classifier(
        model_args.model_name_or_path,
        names,
        from_scratch=model_args.from_scratch,
        freeze_backbone=freeze_backbone,
        drop_path_rate=model_args.drop_path_rate,
        image_size=model_args.image_size,
        **fields,
    )
    config = model.config
    processor = build_image_processor(
        config.image_size, config.image_mean, config.image_std, crop_ratio=model_args.eval_crop_ratio
    )
    return train_images, test_images, model, processor


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
        ValueError: the model is none of images, or lacks what the fields ask for, weights, or an image processor.
        OSError: there is no such model.
    """
    config = read_config(name_or_path)
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
        else:  # a classifier of other classes is made anew
            model = load_model(AutoModelForImageClassification, name_or_path, config, ignore_mismatched_sizes=True)
    else:
        fields |= _statistics(name_or_path, config, from_scratch)
        model = BackboneForImageClassification(BackboneConfig(backbone_config=config, **fields))
        if not from_scratch:
            state = load_backbone(name_or_path, config).state_dict()
            # Without the norm that gave way to the classifier's.
            model.backbone.load_state_dict({name: state[name] for name in model.backbone.state_dict()})
    check_image_size(model.backbone, model.config.image_size)
    if drop_path_rate is not None:
        _drop_paths_of_vit(model.backbone, drop_path_rate)
    model.backbone.requires_grad_(not freeze_backbone)
    return model


def _statistics(name_or_path: str, config: PreTrainedConfig, from_scratch: bool) -> dict[str, list[float]]:
    """Of the images that the weights were trained on; new weights do without, and get those of ImageNet."""
    try:
        processor = load_image_processor(name_or_path, config)
    except ValueError:
        if from_scratch:
            return {}
        raise
    mean, std = image_statistics(processor)
    return {"image_mean": mean, "image_std": std}


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
