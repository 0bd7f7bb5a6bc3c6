"""The one table of algorithms, and what makes them known to transformers' Auto classes."""

import importlib

from transformers.models.auto.configuration_auto import AutoConfig

from ..configuration_utils import SSLConfig
from ..modules.configuration_cifar_resnet import CifarResNetConfig

# model_type: (module folder, configuration, model, image-classification model)
ALGORITHMS = {
    "barlowtwins": ("barlowtwins", "BarlowTwinsConfig", "BarlowTwinsModel", "BarlowTwinsForImageClassification"),
    "byol": ("byol", "BYOLConfig", "BYOLModel", "BYOLForImageClassification"),
    "densecl": ("densecl", "DenseCLConfig", "DenseCLModel", "DenseCLForImageClassification"),
    "moco": ("moco", "MoCoConfig", "MoCoModel", "MoCoForImageClassification"),
    "mocov3": ("mocov3", "MoCoV3Config", "MoCoV3Model", "MoCoV3ForImageClassification"),
    "simsiam": ("simsiam", "SimSiamConfig", "SimSiamModel", "SimSiamForImageClassification"),
    "swav": ("swav", "SwAVConfig", "SwAVModel", "SwAVForImageClassification"),
    "simclr": ("simclr", "SimCLRConfig", "SimCLRModel", "SimCLRForImageClassification"),
    "mae": ("mae", "MAEConfig", "MAEModel", "MAEForImageClassification"),
}


def register_configs() -> None:
    """Registers every configuration with `AutoConfig`.

    The models follow when the first configuration of an algorithm is made: that is before any Auto class can look for
    its model, and it keeps `AutoConfig` from importing sixteen modeling files.
    """
    SSLConfig.register_models = staticmethod(_register_models)
    for model_type, (folder, config_name, _, _) in ALGORITHMS.items():
        module = importlib.import_module(f".{folder}.configuration_{folder}", __package__)
        AutoConfig.register(model_type, getattr(module, config_name), exist_ok=True)
    AutoConfig.register(CifarResNetConfig.model_type, CifarResNetConfig, exist_ok=True)


def _register_models(config_class: type[SSLConfig]) -> None:
    if config_class.model_type not in ALGORITHMS:
        return  # somebody's own algorithm: `register_algorithm` registers it
    folder, _, model_name, classifier_name = ALGORITHMS[config_class.model_type]
    module = importlib.import_module(f".{folder}.modeling_{folder}", __package__)
    _register(config_class, getattr(module, model_name), getattr(module, classifier_name))


def register_algorithm(config_class, model_class, image_classification_class=None) -> None:
    """Makes an algorithm of one's own known to the Auto classes, under its configuration's `model_type`.

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
        AutoModelForPreTraining,
        BitImageProcessor,
        BitImageProcessorPil,
    )

    AutoModel.register(config_class, model_class, exist_ok=True)
    AutoModelForPreTraining.register(config_class, model_class, exist_ok=True)
    if image_classification_class is not None:
        AutoModelForImageClassification.register(config_class, image_classification_class, exist_ok=True)
    AutoImageProcessor.register(
        config_class,
        image_processor_classes={"torchvision": BitImageProcessor, "pil": BitImageProcessorPil},
        exist_ok=True,
    )
