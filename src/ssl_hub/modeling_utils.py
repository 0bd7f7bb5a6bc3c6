"""The base of every algorithm: three modes behind one `forward`, and the life-cycle hooks that a trainer calls."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_utils import SSLConfig
from .modeling_outputs import SSLLossOutput
from .modules.backbones import pool_features

MODES = ("tensor", "loss", "predict")


class SSLPreTrainedModel(PreTrainedModel):
    """What the algorithms and their image classifiers share; the submodule `backbone` is what they have in common."""

    config_class = SSLConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def _check_pixel_values(self, pixel_values: torch.Tensor) -> None:
        channels = self.config.num_channels
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(
                f"pixel_values must have the shape (batch_size, {channels}, height, width), got "
                f"{tuple(pixel_values.shape)}. Grey or transparent images become RGB with image.convert('RGB'); one "
                "image becomes a batch with pixel_values[None]."
            )

    def _backbone_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        self._check_pixel_values(pixel_values)
        # The recorders of the backbone read the backbone's own configuration; a user sets these on ours.
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name) is None:
                kwargs[name] = getattr(self.config, name, None)
        outputs = self.backbone(pixel_values, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=pool_features(outputs.last_hidden_state, self.config.pooling),
            hidden_states=outputs.hidden_states,
            attentions=getattr(outputs, "attentions", None),
        )


class SSLModel(SSLPreTrainedModel):
    """Base of every algorithm: `backbone`, `neck` and `head`, and where there are any `teacher`, `memory`,
    `target_generator`.

    A subclass implements `loss` and `predict`. Call the model itself with a mode rather than these methods: a method
    call goes around the hooks of DistributedDataParallel and `torch.compile`.
    """

    # Names (their last part) of parameters that the paper keeps free of weight decay besides biases and norms.
    no_weight_decay: tuple[str, ...] = ()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, *, mode: str = "tensor", **inputs) -> ModelOutput:
        """Runs the model.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`, or a list of such):
                Normalised images; a list for algorithms that compare several views of an image.
            mode (`str`, *optional*, defaults to `"tensor"`):
                `"tensor"` for features, `"loss"` for the loss to train with, `"predict"` for what the algorithm
                predicts.
            inputs: what the mode takes besides, by name; see the algorithm's `extract_features`, `loss`, `predict`.
        """
        if mode == "tensor":
            return self.extract_features(pixel_values, **inputs)
        if mode == "loss":
            return self.loss(pixel_values, **inputs)
        if mode == "predict":
            return self.predict(pixel_values, **inputs)
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}; got {mode!r}")

    def extract_features(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """`mode="tensor"`: deterministic features of whole images.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state`, tokens `(batch_size, num_tokens, hidden_size)` or a
            feature map `(batch_size, hidden_size, height, width)`; `pooler_output` `(batch_size, hidden_size)` as
            `config.pooling` says; `hidden_states` and `attentions` when asked for.
        """
        return self._backbone_features(
            pixel_values, output_hidden_states=output_hidden_states, output_attentions=output_attentions
        )

    def loss(self, pixel_values: torch.Tensor, **inputs) -> SSLLossOutput:
        """`mode="loss"`."""
        raise NotImplementedError(f"{type(self).__name__} does not implement loss()")

    def predict(self, pixel_values: torch.Tensor, **inputs) -> ModelOutput:
        """`mode="predict"`."""
        raise NotImplementedError(f"{type(self).__name__} does not implement predict()")

    def begin_epoch(self, epoch: int, features: Callable[[], torch.Tensor]) -> None:
        """Called before every epoch, on every process.

        Args:
            epoch: counted from 0.
            features: computes the features `(N, D)` of the whole dataset, in its order, when it is called.
        """

    def end_step(self, progress: float) -> None:
        """Called after every optimizer step; `progress` in (0, 1] is the share of the training that is done."""


class SSLForImageClassification(SSLPreTrainedModel):
    """A linear classifier on the pooled features of an algorithm's backbone, for fine-tuning.

    `from_pretrained` takes the checkpoint of the pretrained algorithm: the backbone is loaded, neck and head are left
    out, the classifier is new.
    """

    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012 - transformers' name and type
        r"^(neck|head|teacher|memory|target_generator)\."
    ]

    def __init__(self, config: SSLConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.backbone = self.build_backbone(config)
        self.classifier = nn.Linear(config.backbone_config.hidden_size, config.num_labels)
        self.post_init()

    def build_backbone(self, config: SSLConfig) -> PreTrainedModel:
        """The backbone as the algorithm's own model builds it, so that its weights fit."""
        raise NotImplementedError(f"{type(self).__name__} does not implement build_backbone()")

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self.classifier:
            init.normal_(module.weight, std=0.01)

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
        """
        features = self._backbone_features(
            pixel_values, output_hidden_states=output_hidden_states, output_attentions=output_attentions
        )
        logits = self.classifier(features.pooler_output)
        loss = self.loss_function(labels, logits, self.config, **kwargs) if labels is not None else None
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=features.hidden_states, attentions=features.attentions
        )
