"""What the configurations of all algorithms share."""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers.configuration_utils import PreTrainedConfig

from .field_types import (
    AtLeastTwo,
    InnerShare,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    check_value,
)


class SSLConfig(PreTrainedConfig):
    r"""Base of every algorithm's configuration.

    The types of its fields, and of a subclass's, are checked whenever one is set, see `field_types.py`: a value that does
    not fit is a `ValueError`.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            The backbone, as the configuration of any transformers vision model (a `dict` names its `model_type`).
            `None` gives the backbone of the algorithm's published ImageNet setting.
        image_size (`int`, *optional*):
            Side length, in pixels, of the square images that the model is used with: what the image processor makes.
            By default what the backbone is built for, or 224.
        pooling (`"cls"` or `"mean"`, *optional*, defaults to `"cls"`):
            What `pooler_output` is for a backbone that returns tokens and does not pool them itself: the class token
            (the first one, where there are two), or the mean of the patch tokens. A backbone without a class token
            gives the mean either way.
        image_mean, image_std (`list[float]`, *optional*, defaults to those of ImageNet):
            Normalisation of the pixels, a value a channel, in units of [0, 1]. The image processor gets the same, and
            `mode="predict"` undoes it.
        classifier_std (`float`, *optional*, defaults to 0.01):
            Of an image classifier: its linear layer starts from a normal distribution with this deviation.
        classifier_norm (`"batchnorm"` or `"layernorm"`, *optional*):
            What comes before that layer: BatchNorm without weight and bias, as in MAE's linear probe (arXiv 2111.06377,
            appendix A.1), or a new LayerNorm. With `pooling="mean"` the latter takes the place of the LayerNorm at the
            end of a ViT, as in MAE's fine-tuning.
        classifier_stages (`list[int]`, *optional*):
            A linear layer on the feature map of each of these stages, instead of one on the pooled features; 0 is the
            stem (arXiv 1905.01235). Each map is pooled to about 9,000 features, then BatchNorm without weight and bias.
        classifier_stage_pooling (`"specified"` or `"adaptive"`, *optional*, defaults to `"specified"`):
            How a map is pooled: by the published kernels, for images of about 224 pixels, or whatever its size.
    """

    # PreTrainedConfig stands for whatever class `backbone_config.model_type` names.
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {"backbone_config": PreTrainedConfig}
    # Title and arXiv id of the paper, for model cards.
    paper: ClassVar[str | None] = None
    # Set by models/auto.py; called with the configuration's class.
    register_models: ClassVar[Callable | None] = None
    # Set by the package, as hub/ lies above the models; called with a model and the arguments of its `push_to_hub`.
    push_model: ClassVar[Callable | None] = None

    backbone_config: dict | PreTrainedConfig | None = None
    image_size: PositiveInt | None = None
    pooling: Literal["cls", "mean"] = "cls"
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[PositiveFloat] | tuple[PositiveFloat, ...] = (0.229, 0.224, 0.225)
    classifier_std: NonNegativeFloat = 0.01
    classifier_norm: Literal["batchnorm", "layernorm"] | None = None
    classifier_stages: list[int] | None = None
    classifier_stage_pooling: Literal["specified", "adaptive"] = "specified"

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # They are checked here. `strict`, which a subclass may have, knows no ranges and takes no whole number as a float.
        for field in fields(cls):
            if field.name in _field_types(cls):
                field.type = object

    def __setattr__(self, name, value):
        hint = _field_types(type(self)).get(name)
        try:
            super().__setattr__(name, value if hint is None else check_value(name, value, hint))
        except StrictDataclassError as error:  # of a field that every configuration of transformers has
            raise ValueError(str(error.__cause__)) from error

    def __post_init__(self, **kwargs):
        kwargs.pop("auto_map", None)  # of a shared repository, whose code is not saved again
        self._check_unknown(kwargs)
        if self.backbone_config is None:
            self.backbone_config = self.default_backbone_config()
        if not isinstance(self.backbone_config, PreTrainedConfig):
            backbone_config = {**self.default_backbone_fields(), **self.backbone_config}
            if "model_type" not in backbone_config:
                raise ValueError(
                    f"backbone_config needs a model_type, such as 'resnet' or 'vit'; got {self.backbone_config}"
                )
            self.backbone_config = build_backbone_config(backbone_config)
        check_backbone_numbers(self.backbone_config)
        if isinstance(self.backbone_config, SSLConfig):
            raise ValueError(
                f"the backbone of {self.model_type!r} cannot be another self-supervised model "
                f"({self.backbone_config.model_type!r}): give the backbone_config inside that one"
            )
        if self.image_size is None:
            self.image_size = backbone_image_size(self.backbone_config)
        self.image_mean, self.image_std = list(self.image_mean), list(self.image_std)
        channels = self.num_channels
        if not len(self.image_mean) == len(self.image_std) == channels:
            raise ValueError(
                f"image_mean and image_std need {channels} values each (one a channel); got {self.image_mean} and "
                f"{self.image_std}"
            )
        try:
            super().__post_init__(**kwargs)
        except (AttributeError, TypeError) as error:  # of what every configuration of transformers has
            raise ValueError(f"transformers refuses the {type(self).__name__}: {error}") from error
        if SSLConfig.register_models is not None:
            SSLConfig.register_models(type(self))

    def _check_unknown(self, values: Mapping[str, Any]) -> None:
        """Raises `ValueError` for a misspelt field, which transformers would keep as an attribute that nobody reads."""
        names = [field.name for field in fields(self)]
        for name in values:
            near = [] if hasattr(type(self), name) else get_close_matches(name, names, n=1, cutoff=0.8)
            if near:
                raise ValueError(f"{type(self).__name__} has no field {name!r}; near it: {near[0]}")

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoConfig") -> None:
        """transformers calls it of what `trust_remote_code` loads, and would save this file with every model from then on."""

    @classmethod
    def default_backbone_config(cls) -> PreTrainedConfig:
        """The backbone of the published setting: ResNet-50, unless an algorithm says otherwise."""
        from transformers import ResNetConfig  # not above: it imports the Auto classes, which import this

        return ResNetConfig()

    @classmethod
    def default_backbone_fields(cls) -> dict:
        """Fields that a backbone given as a `dict` gets where it does not set them."""
        return {}

    @property
    def num_channels(self) -> int:
        return num_backbone_channels(self.backbone_config)

    @property
    def backbone_note(self) -> str:
        """What a user of the plain backbone has to know besides, as the model card puts it; empty if nothing."""
        return ""


@functools.cache
def _field_types(config_class: type[SSLConfig]) -> dict[str, Any]:
    """The types by which the fields of a configuration are checked: those that SSLConfig and its subclasses declare."""
    names = {field.name for field in fields(config_class)}
    bases = [base for base in reversed(config_class.__mro__) if issubclass(base, SSLConfig)]
    types = {name: hint for base in bases for name, hint in inspect.get_annotations(base).items() if name in names}
    types["num_labels"] = PositiveInt  # a property
    return {name: hint for name, hint in types.items() if not isinstance(hint, str)}


def build_backbone_config(values: Mapping[str, Any]) -> PreTrainedConfig:
    """Makes a backbone's configuration of its `model_type` and its fields; a whole number does where one is a float.

    Raises:
        ValueError: transformers does not take them.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # not above: see SSLConfig

    model_type = values["model_type"]
    check_backbone_type(model_type)
    floats = {field.name for field in fields(CONFIG_MAPPING[model_type]) if field.type is float}
    values = {k: float(v) if k in floats and type(v) is int else v for k, v in values.items() if k != "model_type"}
    try:
        return CONFIG_MAPPING[model_type](**values)
    except Exception as error:  # of any kind: what transformers does with a value of the wrong type is its own affair
        reason = error.__cause__ if isinstance(error, StrictDataclassError) else error
        raise ValueError(f"transformers refuses the backbone_config of {model_type!r}: {reason}") from error


def check_backbone_numbers(config: PreTrainedConfig) -> None:
    """Raises `ValueError` if a number of a backbone's configuration is not finite, or negative though its default is not.

    transformers checks types only. What is zero and must not be is found when the backbone is built.
    """
    for field in fields(config):
        allowed = "finite" if field.default is None or any(n < 0 for n in _numbers(field.default)) else "0 or more"
        value = getattr(config, field.name)
        for number in _numbers(value):
            if not abs(number) < math.inf or (number < 0 and allowed == "0 or more"):
                raise ValueError(f"backbone_config.{field.name} must be {allowed}, got {value!r}")


def _numbers(value: Any) -> Iterator[float]:
    """All numbers of a value, of what it lists, and of what that lists."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)


def check_backbone_type(model_type: str) -> None:
    """Raises `ValueError`, with near names, unless transformers knows this `model_type`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # not above: see SSLConfig

    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        near = get_close_matches(str(model_type), list(CONFIG_MAPPING), n=3)
        raise ValueError(
            f"transformers has no model_type {model_type!r} for backbone_config; "
            + (f"near it: {', '.join(near)}" if near else "'resnet', 'vit' and 'timm_wrapper' are some")
        )


def backbone_image_size(config: PreTrainedConfig) -> int:
    """Side length of the square images that a backbone is built for; 224 if it takes any.

    Raises:
        ValueError: they are not square.
    """
    size = getattr(config, "image_size", None)
    if config.model_type == "timm_wrapper":
        from timm.models import get_pretrained_cfg  # timm takes a while to import

        pretrained = get_pretrained_cfg(config.architecture)
        size = (config.model_args or {}).get("img_size") or (pretrained and pretrained.input_size[1:])
    if size is None:
        return 224
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ValueError(f"the image size of a backbone must be square; that of {config.model_type!r} is {size}")
    return height


def num_backbone_channels(config: PreTrainedConfig) -> int:
    """Number of channels of the images that a backbone takes."""
    if config.model_type == "timm_wrapper":
        return (config.model_args or {}).get("in_chans", 3)
    return getattr(config, "num_channels", 3)


class BackboneConfig(SSLConfig):
    r"""A backbone of transformers or timm that no algorithm of ssl_hub has trained, for [`BackboneForImageClassification`].

    Args: those of [`SSLConfig`].
    """

    model_type = "ssl_hub_backbone"


class MaskedPatchConfig(SSLConfig):
    r"""Base of the configurations of algorithms that reconstruct masked patches of an image.

    Args:
        mask_kind (`"random"`, `"aligned"` or `"blockwise"`, *optional*, defaults to `"random"`):
            How the masks are drawn that a training step is not given: patches uniformly, square cells of patches
            uniformly (SimMIM), or rectangles of random size until enough patches are masked (BEiT, arXiv 2106.08254).
        mask_ratio (`float`, *optional*, defaults to 0.75):
            Share of the patches that are masked, rounded up to whole patches, or cells when these are aligned.
        mask_cell_size (`int`, *optional*, defaults to 32):
            Side length of aligned cells, in pixels: a multiple of the patch size that divides the image size.
    """

    # Backbones that know what to do with masked patches.
    backbone_types: ClassVar[tuple[str, ...]] = ("vit",)

    mask_kind: Literal["random", "aligned", "blockwise"] = "random"
    mask_ratio: InnerShare = 0.75
    mask_cell_size: PositiveInt = 32

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        algorithm = type(self).__name__.removesuffix("Config")
        if self.backbone_config.model_type not in self.backbone_types:
            raise ValueError(
                f"{algorithm} masks patches, so the model_type of its backbone must be "
                f"{' or '.join(map(repr, self.backbone_types))}; got {self.backbone_config.model_type!r}"
            )
        image_size, patch_size = self.image_size, self.patch_size
        if not isinstance(patch_size, int) or patch_size < 1 or image_size % patch_size != 0:
            raise ValueError(
                f"{algorithm} needs square images whose side the patch size divides: give image_size and "
                f"patch_size as integers such as 224 and 16; got {image_size} and {patch_size}"
            )
        cell_size = self.mask_cell_size
        if self.mask_kind == "aligned" and (cell_size % patch_size or image_size % cell_size):
            raise ValueError(
                f"mask_cell_size must be a multiple of the patch size {patch_size} and divide the image size "
                f"{image_size}; got {cell_size}"
            )
        for width, heads in self.attention_sizes():
            if not isinstance(heads, int) or heads < 1 or width < 1 or width % heads != 0:
                raise ValueError(
                    f"the width of {algorithm}'s backbone must be a multiple of its number of attention heads; got {width} "
                    f"and {heads}"
                )
        num_patches = (image_size // patch_size) ** 2
        if not 0 < self.num_masked_patches(num_patches) < num_patches:
            raise ValueError(
                f"mask_ratio must mask at least one of the {num_patches // self.mask_unit**2} "
                f"{'cells' if self.mask_kind == 'aligned' else 'patches'} of an image and leave at least one visible; "
                f"got {self.mask_ratio}"
            )

    @property
    def patch_size(self) -> int:
        return self.backbone_config.patch_size

    def attention_sizes(self) -> list[tuple[int, int]]:
        """Width and number of attention heads of the backbone's layers, where they differ."""
        return [(self.backbone_config.hidden_size, self.backbone_config.num_attention_heads)]

    @property
    def mask_unit(self) -> int:
        """Side length, in patches, of what is masked or not as a whole."""
        return self.mask_cell_size // self.patch_size if self.mask_kind == "aligned" else 1

    def num_masked_patches(self, num_patches: int) -> int:
        """How many of so many patches a mask that is drawn removes."""
        unit = self.mask_unit**2
        # without rounding, 0.28 of 25 is above 7
        return unit * math.ceil(round(num_patches // unit * self.mask_ratio, 6))


class JointEmbeddingConfig(SSLConfig):
    r"""Base of the configurations of algorithms that compare the projections of several views of an image.

    Args:
        projection_hidden_size (`int`, *optional*, defaults to 2048): Width of the projector's hidden layers.
        projection_size (`int`, *optional*, defaults to 128): Size of the projections that are compared.
        zero_init_residual (`bool`, *optional*, defaults to `False`):
            Whether the residual blocks of a ResNet start as the identity.
    """

    projection_hidden_size: PositiveInt = 2048
    projection_size: PositiveInt = 128
    zero_init_residual: bool = False


class ProjectorConfig(JointEmbeddingConfig):
    r"""Base of the configurations of algorithms whose projector is a `NonLinearNeck`: linear layers, with BatchNorm and
    ReLU between them.

    Args:
        projection_num_layers (`int`, *optional*, defaults to 2): Linear layers of the projector.
        projection_bias (`bool`, *optional*, defaults to `False`):
            Whether the projector's linear layers before the last one have a bias.
        projection_last_bias (`bool`, *optional*, defaults to `False`): Whether the last one has.
        projection_last_batchnorm (`bool`, *optional*, defaults to `True`): Whether BatchNorm follows the last one.
        projection_last_batchnorm_affine (`bool`, *optional*, defaults to `True`):
            Whether that BatchNorm has weight and bias.
    """

    projection_num_layers: PositiveInt = 2
    projection_bias: bool = False
    projection_last_bias: bool = False
    projection_last_batchnorm: bool = True
    projection_last_batchnorm_affine: bool = True


class PredictorConfig(ProjectorConfig):
    r"""Base of the configurations of algorithms that have a second `NonLinearNeck`, which predicts a projection from
    another.

    Args:
        predictor_hidden_size (`int`, *optional*, defaults to 4096): Width of the predictor's hidden layers.
        predictor_num_layers (`int`, *optional*, defaults to 2): Linear layers of the predictor.
        predictor_bias (`bool`, *optional*, defaults to `False`):
            Whether the predictor's linear layers before the last one have a bias.
        predictor_last_bias (`bool`, *optional*, defaults to `False`): Whether the last one has.
        predictor_last_batchnorm (`bool`, *optional*, defaults to `True`): Whether BatchNorm follows the last one.
        predictor_last_batchnorm_affine (`bool`, *optional*, defaults to `True`):
            Whether that BatchNorm has weight and bias.
    """

    predictor_hidden_size: PositiveInt = 4096
    predictor_num_layers: PositiveInt = 2
    predictor_bias: bool = False
    predictor_last_bias: bool = False
    predictor_last_batchnorm: bool = True
    predictor_last_batchnorm_affine: bool = True


class ClusteringConfig(SSLConfig):
    r"""Base of the configurations of algorithms that classify images into clusters of their own features.

    Args:
        num_clusters (`int`, *optional*, defaults to 10000): Number of clusters.
        kmeans_iterations (`int`, *optional*, defaults to 20): Iterations of k-means.
        class_weight_power (`float`, *optional*, defaults to 0.0):
            The loss of an image weighs as much as the size of its cluster to the power of minus this; 0 for all alike.
        weighted_mean (`bool`, *optional*, defaults to `True`):
            Whether the loss is the weighted mean, as in the authors' code. MMSelfSup 1.x divides by the number of images
            rather than by their weights, which makes the loss smaller by about `num_clusters`.
    """

    num_clusters: AtLeastTwo = 10000
    kmeans_iterations: PositiveInt = 20
    class_weight_power: NonNegativeFloat = 0.0
    weighted_mean: bool = True
