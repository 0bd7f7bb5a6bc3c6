"""What makes the algorithms known to transformers' Auto classes."""

import importlib

from transformers.models.auto.configuration_auto import AutoConfig

from ..configuration_utils import BackboneConfig, SSLConfig
from ..modules.configuration_cifar_resnet import CifarResNetConfig
from ..registry import ALGORITHMS, class_modules


def register_configs() -> None:
    """Registers every configuration with `AutoConfig`.

    The models follow when the first configuration of an algorithm is made: that is before any Auto class can look for
    its model, and it keeps `AutoConfig` from importing sixteen modeling files.
    """
    SSLConfig.register_models = staticmethod(_register_models)
    for model_type in ALGORITHMS:
        AutoConfig.register(model_type, _classes(model_type, count=1)[0], exist_ok=True)
    for config_class in (CifarResNetConfig, BackboneConfig):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


def _register_models(config_class: type[SSLConfig]) -> None:
    if config_class is BackboneConfig:
        from transformers import AutoModelForImageClassification

        from ..modeling_utils import BackboneForImageClassification  # not above: see register_configs

        AutoModelForImageClassification.register(config_class, BackboneForImageClassification, exist_ok=True)
    elif config_class.model_type in ALGORITHMS:  # `register_algorithm` registers a custom algorithm
        _register(*_classes(config_class.model_type))


def _classes(model_type: str, count: int = 3) -> list[type]:
    """Configuration, model and image classifier of an algorithm, or the first of them."""
    names = list(class_modules(model_type).items())[:count]
    return [getattr(importlib.import_module(f".{module}", __package__), name) for name, module in names]


def register_algorithm(config_class, model_class, image_classification_class=None) -> None:
    """Makes a custom algorithm known to the Auto classes, under its configuration's `model_type`.

    Args:
        config_class: a subclass of `SSLConfig`.
        model_class: a subclass of `SSLModel` with `config_class` as its `config_class`.
        image_classification_class: a subclass of `SSLForImageClassification`, if there is one.
    """
    AutoConfig.register(config_class.model_type, config_class)
    _register(config_class, model_class, image_classification_class)


def _register(config_class, model_class, image_classification_class):
    from transformers import (
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForMaskedImageModeling,
        AutoModelForPreTraining,
        BitImageProcessor,
        BitImageProcessorPil,
    )

    from ..modeling_masked_image import MaskedPatchModel

    AutoModel.register(config_class, model_class, exist_ok=True)
    AutoModelForPreTraining.register(config_class, model_class, exist_ok=True)
    if issubclass(model_class, MaskedPatchModel):
        AutoModelForMaskedImageModeling.register(config_class, model_class, exist_ok=True)
    if image_classification_class is not None:
        AutoModelForImageClassification.register(config_class, image_classification_class, exist_ok=True)
    AutoImageProcessor.register(
        config_class,
        image_processor_classes={"torchvision": BitImageProcessor, "pil": BitImageProcessorPil},
        exist_ok=True,
    )
