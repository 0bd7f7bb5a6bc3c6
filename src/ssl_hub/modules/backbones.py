"""Backbones: any vision model of transformers or timm by its configuration, and one way to read what it returns."""

import copy
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.regnet.modeling_regnet import RegNetXLayer, RegNetYLayer
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer

from ..configuration_utils import backbone_image_size, num_backbone_channels

# Parts of the names of what transformers' vision models add to or multiply with tokens and attention scores.
_TOKENS_AND_POSITIONS = {
    *("cls_token", "class_embedding", "distillation_token", "register_tokens", "mask_token", "pos_embed"),
    *("position_embedding", "position_embeddings", "patch_position_embeddings", "relative_position_bias_table"),
    *("attention_biases", "continuous_position_bias_mlp", "logit_scale"),
}


@dataclass(frozen=True)
class BackboneLayout:
    """How to read the outputs of a backbone.

    Args:
        hidden_size: of the pooled features.
        map_size: number of channels of the feature map, or of the tokens; None if there are neither.
        num_prefix_tokens: class, distillation and register tokens, which come before those of the patches.
        channels_last: whether its feature map is `(B, H, W, C)`.
        pools: whether it pools by itself, which is more than handing out the class token.
        interpolates: whether it has to be asked to interpolate its position embeddings to the images' size.
    """

    hidden_size: int
    map_size: int | None
    num_prefix_tokens: int
    channels_last: bool
    pools: bool
    interpolates: bool


class PlainCheckpointMixin:
    """Put before a transformers model that a class extends: its checkpoint is one of its parent.

    Tensors that the parent would not read, such as a mask token, are left out.

    transformers renames the tensors of its own classes when it saves and loads them, so that all its versions read the
    file, but not those of a class it does not know; `AutoModel` then takes the parent's name from the configuration.
    """

    plain_class: type[PreTrainedModel]

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.plain_class = next(base for base in cls.__mro__ if base.__module__.startswith("transformers.models."))
        for name in (cls.plain_class.__name__, cls.plain_class.config_class.model_type):
            mapping = get_checkpoint_conversion_mapping(name)
            if mapping is not None:
                register_checkpoint_conversion_mapping(cls.__name__, mapping, overwrite=True)
                break

    def save_pretrained(self, save_directory, **kwargs):
        with torch.device("meta"):
            known = self.plain_class(self.config).state_dict().keys()
        kwargs.setdefault("state_dict", {name: x for name, x in self.state_dict().items() if name in known})
        super().save_pretrained(save_directory, **kwargs)
        self.config.architectures = [self.plain_class.__name__]
        self.config.save_pretrained(save_directory)


def build_backbone(config: PreTrainedConfig, zero_init_residual: bool = False) -> PreTrainedModel:
    """Builds the plain transformers model of a configuration.

    What none of its features depends on, such as the mask token of DINOv2, becomes a buffer: it would get no gradient,
    which DistributedDataParallel refuses. The checkpoint stays the same.

    Args:
        config: of any vision model of transformers, or of timm (`TimmWrapperConfig`).
        zero_init_residual: for a ResNet or RegNet, whether the last BatchNorm of each block starts at zero, so that the
            block starts as the identity (arXiv 1706.02677).

    Raises:
        ValueError: the configuration is not one of a model that makes features of images.
    """
    from transformers import AutoModel  # not above: it is what imports our models

    with explain_failure(config):
        backbone = AutoModel.from_config(config)
    if hasattr(backbone, "timm_model") and backbone.device.type != "meta":
        _initialize_as_timm(backbone, zero_init_residual)
    drop_trained_pooler(backbone)
    if zero_init_residual:
        with torch.no_grad():
            for module in backbone.modules():
                if isinstance(module, ResNetBasicLayer | ResNetBottleNeckLayer | RegNetXLayer | RegNetYLayer):
                    init.zeros_(module.layer[-1].normalization.weight)
    backbone._layout, unused = _inspect(backbone)
    for name in unused:
        owner, _, last = name.rpartition(".")
        module = backbone.get_submodule(owner)
        value = getattr(module, last).detach()
        delattr(module, last)
        module.register_buffer(last, value)
    return backbone


def drop_trained_pooler(backbone: PreTrainedModel) -> None:
    """Leaves out a pooler with a linear layer, such as ViT's with its tanh.

    It belongs to supervised training, and no loss here would train it.
    """
    pooler = getattr(backbone, "pooler", None)
    if isinstance(pooler, nn.Module) and any(isinstance(module, nn.Linear) for module in pooler.modules()):
        backbone.pooler = None


@contextmanager
def explain_failure(config: PreTrainedConfig) -> Iterator[None]:
    """Turns whatever transformers raises for the configuration of a backbone into a `ValueError` that names it."""
    try:
        yield
    except Exception as error:
        values = {field.name: getattr(config, field.name) for field in fields(config) if field.default}
        missed = error.args if isinstance(error, KeyError) else ()
        suspects = [k for k, v in values.items() if v in missed or (type(v) in (int, list) and not v)]
        hint = f"; look at {', '.join(suspects)} in backbone_config" if suspects else ""
        raise ValueError(
            f"transformers cannot build the backbone {config.model_type!r}: {type(error).__name__}: {error}{hint}"
        ) from error


def _initialize_as_timm(backbone: PreTrainedModel, zero_init_residual: bool) -> None:
    """Gives a model of timm its own initialisation: transformers draws all that it wraps from N(0, 0.02)."""
    import timm  # it takes a while to import

    fresh = timm.create_model(backbone.config.architecture, num_classes=0, **(backbone.config.model_args or {}))
    for module in fresh.modules():  # timm itself starts the last of each block at zero
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    for module in fresh.modules():
        if zero_init_residual and hasattr(module, "zero_init_last"):
            module.zero_init_last()
    backbone.timm_model.load_state_dict(fresh.state_dict())
    for module in backbone.modules():
        module._is_hf_initialized = True  # so that the model around it leaves them alone


def backbone_layout(backbone: PreTrainedModel) -> BackboneLayout:
    """How to read the outputs of a backbone; found out when it is first asked for."""
    if not hasattr(backbone, "_layout"):
        backbone._layout, _ = _inspect(backbone)
    return backbone._layout


def backbone_hidden_size(backbone: PreTrainedModel) -> int:
    """Number of features of a backbone's pooled output."""
    return backbone_layout(backbone).hidden_size


def backbone_map_size(backbone: PreTrainedModel) -> int:
    """Number of channels of a backbone's feature map, which its pooled output may exceed.

    Raises:
        ValueError: it has none.
    """
    map_size = backbone_layout(backbone).map_size
    if map_size is None:
        raise ValueError(f"this algorithm needs a backbone with a feature map or tokens; {describe(backbone)} has none")
    return map_size


def run_backbone(
    backbone: PreTrainedModel, pixel_values: torch.Tensor, pooling: str = "cls", **kwargs
) -> BaseModelOutputWithPooling:
    """Calls a backbone; one with position embeddings for a size of its own interpolates them to the images'.

    Args:
        pixel_values: `(B, C, H, W)`.
        pooling: what the pooled features are unless the backbone pools by itself (ResNet, Swin, most of timm): `"cls"`
            for the first class token, `"mean"` for the mean over the patches or the feature map. A backbone without a
            class token gives the mean either way.
        kwargs: what the backbone takes besides.

    Returns:
        `last_hidden_state`, tokens `(B, L, D)` or a feature map `(B, D, H, W)`; `pooler_output` `(B, D)`; and the
        `hidden_states` and `attentions` that the backbone returned.
    """
    layout = backbone_layout(backbone)
    if layout.interpolates:
        kwargs["interpolate_pos_encoding"] = True
    # Images are float32; a backbone of half precision takes them as its own.
    outputs = backbone(pixel_values.to(backbone.dtype), **kwargs)
    hidden = outputs.last_hidden_state
    if layout.channels_last:
        hidden = hidden.permute(0, 3, 1, 2)
    class_token = getattr(outputs, "cls_token_value", None)  # CvT keeps it apart
    if layout.pools:
        pooled = outputs.pooler_output.flatten(1)
    elif pooling == "cls" and class_token is not None:
        pooled = class_token.squeeze(1)
    elif hidden.ndim == 4:
        pooled = hidden.mean(dim=(2, 3))
    elif pooling == "cls" and layout.num_prefix_tokens > 0:
        pooled = hidden[:, 0]
    else:
        pooled = hidden[:, layout.num_prefix_tokens :].mean(dim=1)
    return BaseModelOutputWithPooling(
        last_hidden_state=hidden,
        pooler_output=pooled,
        hidden_states=getattr(outputs, "hidden_states", None),
        attentions=getattr(outputs, "attentions", None),
    )


def feature_map(backbone: PreTrainedModel, last_hidden_state: torch.Tensor) -> torch.Tensor:
    """The feature map `(B, D, H, W)` in what `run_backbone` returned; tokens are put in their places.

    Raises:
        ValueError: the image was not square.
    """
    layout = backbone_layout(backbone)
    if last_hidden_state.ndim == 4:
        return last_hidden_state
    patches = last_hidden_state[:, layout.num_prefix_tokens :]
    side = math.isqrt(patches.shape[1])
    if side**2 != patches.shape[1]:
        raise ValueError(f"this algorithm needs square images; {describe(backbone)} made {patches.shape[1]} patches")
    return patches.transpose(1, 2).unflatten(2, (side, side))


def stage_feature_maps(backbone: PreTrainedModel, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    """The feature maps `(B, D, H, W)` of a convolutional backbone: its stem, before the pooling in it, and its stages.

    Raises:
        ValueError: the backbone has no stages whose maps become smaller.
    """
    stem = getattr(getattr(backbone, "embedder", None), "embedder", None)
    captured: list[torch.Tensor] = []
    # A transformers ResNet returns the stem's map after the max-pooling only.
    hook = stem.register_forward_hook(lambda module, args, output: captured.append(output)) if stem else None
    try:
        maps = backbone(pixel_values.to(backbone.dtype), output_hidden_states=True).hidden_states
    except ValueError:  # timm's models without intermediate features
        maps = None
    finally:
        if hook is not None:
            hook.remove()
    maps = [*captured, *(maps or ())[len(captured) :]]
    sides = [each.shape[-1] for each in maps if each.ndim == 4]
    if len(sides) < len(maps) or not sides or sides != sorted(sides, reverse=True) or sides[0] == sides[-1]:
        raise ValueError(
            f"{describe(backbone)} has no stages whose feature maps become smaller, as a ResNet has: leave the stages out, "
            "and the classifier gets its pooled features"
        )
    return maps


def stage_channels(backbone: PreTrainedModel, stages: list[int]) -> dict[int, int]:
    """The number of channels of the feature map of each of these stages.

    Raises:
        ValueError: the backbone lacks one.
    """
    size, channels = backbone_image_size(backbone.config), num_backbone_channels(backbone.config)
    pixel_values = torch.empty(1, channels, size, size, device="meta", dtype=backbone.dtype)
    with torch.no_grad():
        maps = stage_feature_maps(_meta_copy(backbone).eval(), pixel_values)
    # A classifier knows how to pool the maps of a stem and four stages.
    available = range(min(5, len(maps)))
    if not stages or any(stage not in available for stage in stages) or stages != sorted(set(stages)):
        raise ValueError(
            f"the stages of {describe(backbone)} are 0 (the stem) to {available[-1]}; choose some of them, in rising "
            f"order; got {stages}"
        )
    return {stage: maps[stage].shape[1] for stage in stages}


def check_image_size(backbone: PreTrainedModel, size: int) -> None:
    """Raises `ValueError` unless a backbone takes square images of `size` pixels a side."""
    try:
        with torch.no_grad():
            _meta_outputs(_meta_copy(backbone).eval(), size)
    except Exception as error:
        raise ValueError(
            f"{describe(backbone)} does not take images of {size} x {size} pixels ({error}): leave image_size out, or choose "
            "a model for that size"
        ) from error


def is_convolutional(backbone: PreTrainedModel) -> bool:
    """Whether a backbone is one of convolutions with BatchNorm, such as a ResNet, which run faster channels last."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules())


def remove_final_norm(backbone: PreTrainedModel) -> None:
    """Takes the LayerNorm at the end of a backbone of tokens away, unless the backbone pools by itself."""
    if not backbone_layout(backbone).pools:
        owner = getattr(backbone, "timm_model", backbone)
        name = "norm" if owner is not backbone else "layernorm"
        if not isinstance(getattr(owner, name, None), nn.LayerNorm | nn.Identity):
            raise ValueError(
                f"{describe(backbone)} has no LayerNorm at its end for classifier_norm='layernorm' to take the place of: "
                "leave classifier_norm out, or choose pooling='cls'"
            )
        setattr(owner, name, nn.Identity())


def no_weight_decay_names(backbone: PreTrainedModel) -> set[str]:
    """Names of the parameters, besides norms and biases, that the backbone's library keeps free of weight decay.

    timm's models name them; for those of transformers they are tokens, position embeddings and what else biases the
    attention by position.
    """
    names = {name for name, _ in backbone.named_parameters()}
    timm_model = getattr(backbone, "timm_model", None)
    if timm_model is None:
        return {name for name in names if not _TOKENS_AND_POSITIONS.isdisjoint(name.split("."))}
    if not hasattr(timm_model, "no_weight_decay"):
        return set()
    # Some of timm's are whole names and some are parts of names, as timm itself takes them.
    free = set(timm_model.no_weight_decay())
    return {name for name in names if name.removeprefix("timm_model.") in free or not free.isdisjoint(name.split("."))}


def describe(backbone: PreTrainedModel) -> str:
    """A backbone's name for error messages, such as `'vit'` or `timm's 'resnet18'`."""
    config = backbone.config
    return f"timm's {config.architecture!r}" if hasattr(backbone, "timm_model") else repr(config.model_type)


# How a backbone is asked what it returns. Models of the same configuration and class answer alike, and are asked once.
_ANSWERS: dict[tuple, tuple[BackboneLayout, list[str]]] = {}


class _RefuseRandomness(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # Attention has the tag for its dropout, which is off here.
        if torch.Tag.nondeterministic_seeded in func.tags and "attention" not in str(func):
            raise ValueError("it draws at random in eval mode too, so its features would differ at every call")
        return func(*args, **(kwargs or {}))


def _inspect(backbone: PreTrainedModel) -> tuple[BackboneLayout, list[str]]:
    key = (type(backbone), backbone.config.to_json_string(), *(name for name, _ in backbone.named_parameters()))
    if key not in _ANSWERS:
        _ANSWERS[key] = _run_on_meta(backbone)
    return _ANSWERS[key]


@torch.enable_grad()
def _run_on_meta(backbone: PreTrainedModel) -> tuple[BackboneLayout, list[str]]:
    """Runs a backbone on the meta device, whatever device it is on: no value is read, and next to nothing computed.

    Returns:
        Its layout, and the names of the parameters on which neither its pooled features nor its last hidden state
        depends.
    """
    name = f"{describe(backbone)} cannot be a backbone"
    if backbone.main_input_name != "pixel_values":
        raise ValueError(
            f"{name}: it takes {backbone.main_input_name}, not images alone. Give the configuration of a vision model; of "
            "a model of images and texts, its vision_config."
        )
    copied, size = _meta_copy(backbone).eval(), backbone_image_size(backbone.config)
    try:
        outputs = _meta_outputs(copied, size)
        try:
            larger = _meta_outputs(copied, 2 * size).last_hidden_state.shape
        except Exception:
            larger = None  # built for one size of images
    except Exception as error:
        raise ValueError(f"{name}: a forward pass on an image of {size} x {size} pixels fails: {error}") from error
    hidden, pooled = getattr(outputs, "last_hidden_state", None), getattr(outputs, "pooler_output", None)
    if not isinstance(hidden, torch.Tensor):
        raise ValueError(f"{name}: it returns no last hidden state, or several (features_only of timm)")
    # DINOv2 and some of timm hand the class token out as their pooled output: then the choice is still ours.
    pools = pooled is not None and pooled._base is not hidden
    channels_last, prefix = False, 0
    if hidden.ndim == 4:
        channels_last = _channels_last(hidden.shape, larger, pooled.shape[1] if pools else None)
    elif hidden.ndim == 3:
        prefix = _num_prefix_tokens(backbone, hidden.shape[1], larger[1] if larger else None)
    no_map = hidden.ndim not in (3, 4) or prefix is None
    if no_map and not pools:
        raise ValueError(
            f"{name}: its last hidden state, of the shape {tuple(hidden.shape)} for an image of {size} x {size} pixels, is "
            "neither a feature map nor the tokens of a grid of patches, and it pools nothing itself"
        )
    map_size = None if no_map else hidden.shape[1 if hidden.ndim == 4 and not channels_last else -1]
    layout = BackboneLayout(
        hidden_size=pooled.flatten(1).shape[1] if pools else map_size,
        map_size=map_size,
        num_prefix_tokens=prefix or 0,
        channels_last=channels_last,
        pools=pools,
        interpolates=_interpolates(backbone),
    )
    class_token = getattr(outputs, "cls_token_value", None)
    used = [tensor.sum() for tensor in (hidden, pooled, class_token) if tensor is not None and tensor.requires_grad]
    names, parameters = zip(*copied.named_parameters(), strict=True)
    gradients = torch.autograd.grad(used, parameters, allow_unused=True)
    return layout, [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]


def _meta_copy(backbone: PreTrainedModel) -> PreTrainedModel:
    """A copy whose tensors are on the meta device: some models keep what they computed in attributes."""
    memo = {id(tensor): tensor.detach().to("meta") for tensor in backbone.buffers()}
    memo |= {id(parameter): nn.Parameter(parameter.detach().to("meta")) for parameter in backbone.parameters()}
    return copy.deepcopy(backbone, memo)


def _meta_outputs(backbone: PreTrainedModel, size: int):
    channels = num_backbone_channels(backbone.config)
    pixel_values = torch.empty(1, channels, size, size, device="meta", dtype=backbone.dtype)
    with _RefuseRandomness():
        return backbone(pixel_values, **({"interpolate_pos_encoding": True} if _interpolates(backbone) else {}))


def _interpolates(backbone: PreTrainedModel) -> bool:
    return "interpolate_pos_encoding" in inspect.signature(type(backbone).forward).parameters


def _channels_last(shape: torch.Size, larger: torch.Size | None, pooled_size: int | None) -> bool:
    """Whether a feature map of these sizes `(1, ?, ?, ?)` is `(B, H, W, C)`: the channels stay as images grow."""
    if larger is not None:
        return shape[3] == larger[3] and shape[1] != larger[1]
    return shape[3] == pooled_size and shape[1] == shape[2] != pooled_size


def _num_prefix_tokens(backbone: PreTrainedModel, num_tokens: int, larger: int | None) -> int | None:
    """How many of the tokens are no patches of a square grid; None if none of the numbers works out.

    Args:
        num_tokens, larger: for an image, and for one with twice its side, where the backbone takes it.
    """
    if larger is None:
        known = getattr(getattr(backbone, "timm_model", None), "num_prefix_tokens", None)
        return num_tokens - math.isqrt(num_tokens) ** 2 if known is None else known
    for side in range(math.isqrt(num_tokens), 0, -1):
        prefix = num_tokens - side**2
        # A side that the patch size does not divide can leave room for one more patch when it is doubled.
        if larger - prefix in ((2 * side) ** 2, (2 * side + 1) ** 2):
            return prefix
    return None
