"""Configuration of the ResNet for small images."""

from huggingface_hub.dataclasses import strict
from transformers.models.resnet.configuration_resnet import ResNetConfig


@strict
class CifarResNetConfig(ResNetConfig):
    r"""Configuration of [`CifarResNetModel`]; its fields are those of a `ResNetConfig`."""

    model_type = "cifar_resnet"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        from transformers import AutoModel  # not above: it is what imports our configurations

        from .modeling_cifar_resnet import CifarResNetModel

        AutoModel.register(type(self), CifarResNetModel, exist_ok=True)
