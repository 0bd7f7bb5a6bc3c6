"""The base of every algorithm: three modes behind one `forward`, and the life-cycle hooks that a trainer calls."""

import inspect
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_utils import BackboneConfig, SSLConfig
from .lifecycle import FeatureTable, ParameterRule, Progress
from .model_loading import fields_around_backbone, load_backbone, read_config
from .modeling_outputs import (
    SSLLossOutput,
)
from .modules.backbones import (
    backbone_hidden_size,
    build_backbone,
    check_image_size,
    describe,
    explain_failure,
    remove_final_norm,
    run_backbone,
    stage_channels,
    stage_feature_maps,
)
from .modules.heads import StageClassifier
from .modules.memories import Queue
from .pretrained import check_finite

logger = logging.getLogger(__name__)

# What each mode calls.
MODES = {"tensor": "extract_features", "loss": "loss", "predict": "predict"}

# Options of `from_pretrained` that say where files come from, and what the Auto classes add.
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_AUTO_OPTIONS = ("_from_auto", "adapter_kwargs", "trust_remote_code")

# The submodules that an algorithm has besides its backbone.
SUBMODULES = ("neck", "head", "teacher", "memory", "target_generator")


def check_floats(pixel_values: torch.Tensor, name: str = "pixel_values") -> None:
    """Raises `ValueError` unless `pixel_values` are one tensor, of floats, with an image at least."""
    if not isinstance(pixel_values, torch.Tensor):
        given = f"a list of {len(pixel_values)}" if isinstance(pixel_values, Sequence) else type(pixel_values).__name__
        raise ValueError(
            f"{name} must be one tensor here, with one view of each image; got {given}. In a recipe, the counts of "
            "the views add up to 1."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"{name} must be normalised floats, got {pixel_values.dtype}: the image processor makes them of images, "
            "and (pixels / 255 - mean) / std of 8-bit pixels."
        )
    if 0 in pixel_values.shape:
        raise ValueError(f"{name} hold no image: got a batch of the shape {tuple(pixel_values.shape)}.")


class SSLPreTrainedModel(PreTrainedModel):
    """What the algorithms and their image classifiers share; the submodule `backbone` is what they have in common."""

    config_class = SSLConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    gradient_checkpointing = False  # transformers refuses a model in which nothing has this, and timm's layers have not
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers, and raises `ValueError` if the weights hold NaN or infinity."""
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        check_finite(model.state_dict(), f"the checkpoint {pretrained_model_name_or_path}")
        return (model, info) if output_loading_info else model

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs) -> None:
        """What `gradient_checkpointing_enable` calls; raises `ValueError` if the backbone has no checkpointing."""
        if enable and not self.backbone.supports_gradient_checkpointing:
            raise ValueError(
                f"{describe(self.backbone)} has no gradient checkpointing, so its activations would all be kept: leave it "
                "out, or take a backbone of transformers or timm that has it, such as 'vit', 'swin' or timm's 'resnet50'"
            )
        super()._set_gradient_checkpointing(enable, *args, **kwargs)
        for module in self.modules():
            if hasattr(module, "timm_model") and module.supports_gradient_checkpointing:
                module.timm_model.set_grad_checkpointing(enable)

    def check_pixel_values(self, pixel_values: torch.Tensor) -> None:
        """Raises `ValueError` unless `pixel_values` are a batch of normalised images `(B, C, H, W)` for this model."""
        check_floats(pixel_values)
        channels = self.config.num_channels
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(
                f"pixel_values must have the shape (batch_size, {channels}, height, width), got "
                f"{tuple(pixel_values.shape)}. Grey or transparent images become RGB with image.convert('RGB'); one "
                "image becomes a batch with pixel_values[None]."
            )

    def backbone_input(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the backbone takes of normalised images: all of them, unless a fixed filter comes in front of it."""
        return pixel_values

    def extract_features(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Deterministic features of whole images; of an algorithm, `mode="tensor"`.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state`, tokens `(batch_size, num_tokens, hidden_size)` or a
            feature map `(batch_size, hidden_size, height, width)`; `pooler_output` `(batch_size, hidden_size)` as
            `config.pooling` says; `hidden_states` and `attentions` when asked for.
        """
        self.check_pixel_values(pixel_values)
        # The backbone reads its own configuration; a user sets these on ours. Passed on only where they are asked for:
        # not every backbone takes both.
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        asked = {name: getattr(self.config, name, None) if value is None else value for name, value in asked.items()}
        options = {name: value for name, value in asked.items() if value}
        return run_backbone(self.backbone, self.backbone_input(pixel_values), self.config.pooling, **options)


def _input_names(method: Callable) -> tuple[str, ...] | None:
    """The names of what a method of a model takes besides `self` and the images; None if it takes any keyword."""
    parameters = list(inspect.signature(method).parameters.values())[2:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return tuple(parameter.name for parameter in parameters)


def _plain_config(name, given: PreTrainedConfig | None, options: dict) -> PreTrainedConfig | None:
    """The configuration of a checkpoint that is a plain backbone; None for one of our models, or where there is none.

    Args:
        given: as `config`; where an Auto class has read it from the checkpoint it says what that is.
    """
    if name is None or (isinstance(given, SSLConfig) and given.name_or_path == str(name)):
        return None
    try:
        config = read_config(name, **options)
    except (OSError, ValueError):  # transformers says of our own what is wrong
        return None
    return None if isinstance(config, SSLConfig) else config


class SSLModel(SSLPreTrainedModel):
    """Base of every algorithm: `backbone`, `neck` and `head`, and where there are any `teacher`, `memory`,
    `target_generator`.

    A subclass implements `loss` and `predict`. Call the model itself with a mode rather than these methods: a method
    call goes around the hooks of DistributedDataParallel and `torch.compile`.

    A training loop calls `begin_run` once, `begin_epoch` before every epoch, `begin_step` before and `end_step` after
    every optimizer step. A model that is told nothing is as at the end of a run.
    """

    # Whether BatchNorm uses the statistics of all processes.
    sync_batchnorm: bool = True
    # Settings of single parameters; the first rule that matches a name holds. One without a match is an error.
    parameter_rules: ClassVar[tuple[ParameterRule, ...]] = ()
    # Beginnings of the names, in the state dict, of what is kept in checkpoints and left out of what is shared.
    training_state: ClassVar[tuple[str, ...]] = ()
    # What `begin_epoch` says besides: numbers for the log, and the parameters that it has drawn anew, so that the
    # optimizer forgets its state of them.
    epoch_metrics: Mapping[str, float] = MappingProxyType({})
    redrawn_parameters: Sequence[nn.Parameter] = ()
    # transformers' Trainer divides by the number of accumulated batches itself.
    accepts_loss_kwargs = False
    # The names of what each mode takes besides the images; None if its method takes any keyword.
    mode_inputs: ClassVar[dict[str, tuple[str, ...] | None]] = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.mode_inputs = {mode: _input_names(getattr(cls, name)) for mode, name in MODES.items()}

    @property
    def cluster_labels(self) -> torch.Tensor | None:
        """The clusters `(num_samples,)` of the dataset's images on the CPU, -1 for none; None without clusters."""
        return None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers; a plain backbone of transformers or timm becomes the `backbone`, and all else is new.

        Args:
            pretrained_model_name_or_path: of a model of this class, or of a backbone: a folder, such as `backbone/` in
                what ssl_hub shares, a Hub id, or the bare name of an architecture of timm.
            config: around a backbone the fields besides `backbone_config`; fields can also be given by name.

        Raises:
            ValueError: the weights hold NaN or infinity, or the backbone does not fit the algorithm.
        """
        name, options = pretrained_model_name_or_path, {key: kwargs[key] for key in _HUB_OPTIONS if key in kwargs}
        plain_config = _plain_config(name, kwargs.get("config"), options)
        if plain_config is None:
            model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        else:
            kwargs = {key: value for key, value in kwargs.items() if key not in {*options, *_AUTO_OPTIONS}}
            model, info = cls._around_backbone(name, plain_config, options, **kwargs)
        if any(key.startswith("teacher.") for key in info["missing_keys"]):
            model.teacher.follow(model, momentum=0.0)
        model.freeze()  # loading makes every parameter trainable
        return (model, info) if output_loading_info else model

    @classmethod
    def _around_backbone(cls, name, plain_config, options, config=None, **kwargs):
        """A model with the weights of a plain backbone, and what `output_loading_info` is of it.

        Args:
            options: where the backbone's files come from.
            config: of the model; made around the backbone's by default, with the fields among `kwargs`.
        """
        loaded = load_backbone(name, plain_config, **options).state_dict()
        if config is None:
            own = {field.name: kwargs.pop(field.name) for field in fields(cls.config_class) if field.name in kwargs}
            config = cls.config_class(**{**fields_around_backbone(name, plain_config, **options), **own})
        model = cls._from_config(config, **kwargs)
        check_image_size(model.backbone, config.image_size)
        expected = model.backbone.state_dict()
        wrong = sorted(key for key in loaded.keys() & expected.keys() if loaded[key].shape != expected[key].shape)
        if wrong:
            raise ValueError(
                f"the backbone {name} has {len(wrong)} tensors of other shapes than the configuration's backbone_config, "
                f"such as {wrong[0]}: take the backbone_config of {name}"
            )
        unused = model.backbone.load_state_dict(loaded, strict=False).unexpected_keys
        found = {f"backbone.{key}" for key in loaded}
        new = [key for key in model.state_dict() if key not in found]
        parts = dict.fromkeys(key if key.startswith("backbone.") else key.partition(".")[0] for key in new)
        parts.pop("teacher", None)  # a copy
        logger.warning("%s starts from the backbone %s; new: %s", cls.__name__, name, ", ".join(parts) or "nothing")
        return model, {"missing_keys": set(new), "unexpected_keys": set(unused), "mismatched_keys": set()}

    def post_init(self):
        super().post_init()
        if hasattr(self, "teacher") and not any(parameter.is_meta for parameter in self.parameters()):
            self.teacher.follow(self, momentum=0.0)  # only now are student and teacher initialised
        # A shared model is complete without it: loading one initialises it without a warning.
        self._keys_to_ignore_on_load_missing.update(f"^{re.escape(prefix)}" for prefix in self.training_state)
        self.freeze()

    def push_to_hub(self, repo_id: str, **options) -> str:
        """Shares the model on the Hub: the whole method, its backbone, the image processor and a model card.

        Args:
            repo_id: "owner/name", or "name" for your own namespace; created if it does not exist.
            options: those of [`ssl_hub.hub.publishing.push_model`], named as in transformers: `commit_message`,
                `commit_description`, `private`, `token`, `revision`, `create_pr`, `max_shard_size`, `tags`; and
                `image_processor`, by default the one that the model was loaded with or one made from the configuration.

        Returns:
            The URL of the repository, or of the pull request.
        """
        return SSLConfig.push_model(self, repo_id, **options)

    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs) -> None:
        """As in transformers, but for `push_to_hub=True`, which would upload an incomplete repository."""
        if push_to_hub:
            raise ValueError(
                "save_pretrained(push_to_hub=True) would upload the weights without backbone/, image processor and model "
                "card: call push_to_hub(repo_id)"
            )
        super().save_pretrained(save_directory, *args, **kwargs)

    def freeze(self) -> None:
        """Makes untrainable what the algorithm does not train; called after every construction and loading."""
        if hasattr(self, "teacher"):
            self.teacher.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module):
        """Necks and heads start as torch initialises them; the base class would draw them from N(0, 0.02).

        A linear layer with a `weight_std` of its own starts from N(0, `weight_std`^2), without a bias.
        """
        if hasattr(module, "weight_std"):
            init.normal_(module.weight, std=module.weight_std)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, Queue):
            init.copy_(module.vectors, module.random_vectors())
            init.zeros_(module.pointer)
        else:
            super()._init_weights(module)
        for name, value in getattr(module, "scheduled", {}).items():
            init.constant_(module.get_buffer(name), value)

    def register_scheduled(self, **end_values: float) -> None:
        """Adds buffers `()` for values that `begin_step` sets and `loss` reads, with what they are at a run's end.

        They are tensors, so that a compiled step is not compiled anew when they change, and not saved.
        """
        self.scheduled = {**getattr(self, "scheduled", {}), **end_values}
        for name, value in end_values.items():
            self.register_buffer(name, torch.tensor(float(value)), persistent=False)

    def set_scheduled(self, **values: float) -> None:
        """Sets values that `register_scheduled` has added."""
        for name, value in values.items():
            self.get_buffer(name).fill_(value)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | list[torch.Tensor],
        *,
        mode: str = "tensor",
        return_loss: bool | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        target_pixel_values: torch.Tensor | None = None,
        indices: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        **inputs,
    ) -> ModelOutput:
        """Runs the model.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`, or a list of such):
                Normalised images; a list for algorithms that compare several views of an image.
            mode (`str`, *optional*, defaults to `"tensor"`):
                `"tensor"` for features, `"loss"` for the loss to train with, `"predict"` for what the algorithm
                predicts.
            return_loss (`bool`, *optional*): `True` is `mode="loss"`, as transformers' `Trainer` asks for it.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`, *optional*),
            target_pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, target_height, target_width)`, *optional*):
                Which patches are masked, and the images as a target generator takes them: for `"loss"` and `"predict"` of
                masked-image models.
            indices (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                The images' rows in the dataset, for the `"loss"` of algorithms that remember every image.
            output_hidden_states, output_attentions (`bool`, *optional*): See `extract_features`; for `"tensor"`.
            interpolate_pos_encoding (`bool`, *optional*): `True` is what every mode does.
            inputs: what the algorithm's `loss` or `predict` takes besides, by name.

        Raises:
            ValueError: the mode does not exist, or does not take what is given.
        """
        if return_loss and mode == "tensor":
            mode = "loss"
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}; got {mode!r}")
        if interpolate_pos_encoding is False:
            raise ValueError(
                "interpolate_pos_encoding=False asks for an error where the images have another size than the positions, "
                "which are always interpolated here: leave it out"
            )
        inputs |= {
            "bool_masked_pos": bool_masked_pos,
            "target_pixel_values": target_pixel_values,
            "indices": indices,
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
        }
        inputs = {name: value for name, value in inputs.items() if value is not None}
        taken = self.mode_inputs[mode]
        for name in inputs:
            if taken is not None and name not in taken:
                raise ValueError(
                    f"mode={mode!r} of {type(self).__name__} takes {', '.join(('pixel_values', *taken))}, not {name}"
                )
        return getattr(self, MODES[mode])(pixel_values, **inputs)

    def loss(self, pixel_values: torch.Tensor, **inputs) -> SSLLossOutput:
        """`mode="loss"`."""
        raise NotImplementedError(f"{type(self).__name__} does not implement loss()")

    def predict(self, pixel_values: torch.Tensor, **inputs) -> ModelOutput:
        """`mode="predict"`."""
        raise NotImplementedError(f"{type(self).__name__} does not implement predict()")

    def begin_run(self, num_samples: int | None) -> None:
        """Called once, before the optimizer is made and before a checkpoint is loaded: memory banks get their size.

        Args:
            num_samples: images in the dataset; None for a stream.
        """

    def begin_epoch(self, progress: Progress, features: Callable[..., FeatureTable]) -> torch.Tensor | None:
        """Called before every epoch, on every process, with random generators that are alike on all of them.

        It is not called again when a run is resumed within an epoch: what it keeps for the epoch has to be a buffer.

        Args:
            features: computes the [`FeatureTable`] of the whole dataset when it is called, of the pooled features or of
                what a function of `pixel_values` `(B, C, H, W)` makes: `features(extract)`.

        Returns:
            `torch.FloatTensor` of shape `(num_samples,)` or None: weights by which the epoch's images are drawn, with
            replacement; None for every image once.
        """

    def begin_step(self, progress: Progress) -> None:
        """Called before every optimizer step; `progress.step` steps are done."""

    def end_step(self, progress: Progress) -> None:
        """Called after every optimizer step, which `progress.step` counts already."""


class SSLForImageClassification(SSLPreTrainedModel):
    """A linear classifier on an algorithm's backbone, for fine-tuning and for linear evaluation.

    `from_pretrained` takes the checkpoint of the pretrained algorithm: the backbone is loaded, neck and head are left
    out, the classifier is new. `config.classifier_stages` and `config.classifier_norm` say what it stands on. A backbone
    of which no parameter is trained stays in eval mode: its BatchNorm would change with the images that it sees.
    """

    # The last one: the LayerNorm that `classifier_norm` takes the place of.
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012 - transformers' name and type
        rf"^({'|'.join(SUBMODULES)})\.",
        r"^backbone\.(timm_model\.norm|layernorm)\.",
    ]

    def __init__(self, config: SSLConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        with explain_failure(config.backbone_config):
            self.backbone = self.build_backbone(config)
        if config.classifier_stages is not None:
            channels = stage_channels(self.backbone, config.classifier_stages)
            self.classifier = StageClassifier(channels, config.num_labels, config.classifier_stage_pooling)
        else:
            hidden_size = backbone_hidden_size(self.backbone)
            self.classifier = nn.Linear(hidden_size, config.num_labels)
            if config.classifier_norm == "batchnorm":
                self.classifier_norm = nn.BatchNorm1d(hidden_size, eps=1e-6, affine=False)
            elif config.classifier_norm == "layernorm":
                if config.pooling == "mean":
                    remove_final_norm(self.backbone)
                self.classifier_norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.post_init()

    def build_backbone(self, config: SSLConfig) -> PreTrainedModel:
        """The backbone as the algorithm's own model builds it, so that its weights fit."""
        return build_backbone(config.backbone_config)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and any(module is each for each in self.classifier.modules()):
            init.normal_(module.weight, std=self.config.classifier_std)

    def train(self, mode: bool = True):
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.backbone.eval()
        return self

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutput:
        """Classifies images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): normalised images.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): for the loss, which is chosen by
                `config.problem_type` as everywhere in transformers.

        Returns:
            `ImageClassifierOutput` with `logits` `(batch_size, num_labels)`; of a classifier of stages
            `(batch_size, num_stages, num_labels)`, and the loss is the sum over the stages.
        """
        if self.config.classifier_stages is not None:
            self.check_pixel_values(pixel_values)
            maps = stage_feature_maps(self.backbone, self.backbone_input(pixel_values))
            logits = self.classifier([maps[stage] for stage in self.config.classifier_stages])
            loss = None
            if labels is not None:
                loss = sum(self.loss_function(labels, each, self.config, **kwargs) for each in logits.unbind(dim=1))
            return ImageClassifierOutput(loss=loss, logits=logits)
        features = self.extract_features(pixel_values, output_hidden_states, output_attentions)
        pooled = features.pooler_output
        logits = self.classifier(self.classifier_norm(pooled) if self.config.classifier_norm else pooled)
        loss = self.loss_function(labels, logits, self.config, **kwargs) if labels is not None else None
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=features.hidden_states, attentions=features.attentions
        )


class BackboneForImageClassification(SSLForImageClassification):
    """The same on a backbone of transformers or timm, so that it can be compared with those of the algorithms."""

    config_class = BackboneConfig
