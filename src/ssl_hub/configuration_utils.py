"""What the configurations of all algorithms share."""

from collections.abc import Callable
from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig


@strict
class SSLConfig(PreTrainedConfig):
    r"""Base of every algorithm's configuration.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            The backbone, as the configuration of any transformers vision model (a `dict` names its `model_type`).
            `None` gives the backbone of the algorithm's published ImageNet setting.
        pooling (`"cls"` or `"mean"`, *optional*, defaults to `"cls"`):
            What `pooler_output` is for a backbone that returns tokens: the class token, or the mean of the patch
            tokens. Feature maps are always averaged.
        image_mean, image_std (`list[float]`, *optional*, defaults to those of ImageNet):
            Normalisation of the pixels, a value a channel, in units of [0, 1]. The image processor gets the same, and
            `mode="predict"` undoes it.
    """

    # PreTrainedConfig stands for whatever class `backbone_config.model_type` names.
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {"backbone_config": PreTrainedConfig}
    # Title and arXiv id of the paper, for model cards.
    paper: ClassVar[str | None] = None
    # Set by models/auto.py; called with the configuration's class.
    register_models: ClassVar[Callable | None] = None

    backbone_config: dict | PreTrainedConfig | None = None
    pooling: Literal["cls", "mean"] = "cls"
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self, **kwargs):
        from transformers import AutoConfig  # not above: it is what imports our configurations

        if self.backbone_config is None:
            self.backbone_config = self.default_backbone_config()
        if not isinstance(self.backbone_config, PreTrainedConfig):
            backbone_config = {**self.default_backbone_fields(), **self.backbone_config}
            if "model_type" not in backbone_config:
                raise ValueError(
                    f"backbone_config needs a model_type, such as 'resnet' or 'vit'; got {self.backbone_config}"
                )
            self.backbone_config = AutoConfig.for_model(**backbone_config)
        self.image_mean, self.image_std = list(self.image_mean), list(self.image_std)
        channels = self.num_channels
        if not len(self.image_mean) == len(self.image_std) == channels or min(self.image_std) <= 0:
            raise ValueError(
                f"image_mean and image_std need {channels} values each (one a channel), the latter positive; got "
                f"{self.image_mean} and {self.image_std}"
            )
        super().__post_init__(**kwargs)
        if SSLConfig.register_models is not None:
            SSLConfig.register_models(type(self))

    @classmethod
    def default_backbone_config(cls) -> PreTrainedConfig:
        """The backbone of the published setting."""
        raise ValueError(f"{cls.__name__} has no default backbone: give backbone_config")

    @classmethod
    def default_backbone_fields(cls) -> dict:
        """Fields that a backbone given as a `dict` gets where it does not set them."""
        return {}

    @property
    def image_size(self) -> int:
        """Side length, in pixels, of the (square) images that the backbone is built for."""
        return getattr(self.backbone_config, "image_size", 224)

    @property
    def num_channels(self) -> int:
        return getattr(self.backbone_config, "num_channels", 3)
