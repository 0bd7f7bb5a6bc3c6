"""The base of every algorithm: three modes behind one `forward`, and the life-cycle hooks that a trainer calls."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_utils import JointEmbeddingConfig, SSLConfig
from .distributed import check_batch_for_batchnorm
from .modeling_outputs import ProjectionOutput, SSLLossOutput
from .modules.backbones import backbone_hidden_size, build_backbone, run_backbone
from .modules.losses import normalize
from .modules.memories import Queue, StepCounter

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
        # The backbone reads its own configuration; a user sets these on ours. Passed on only where they are asked for:
        # not every backbone takes both.
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name) is None:
                kwargs[name] = getattr(self.config, name, None)
            if not kwargs[name]:
                del kwargs[name]
        return run_backbone(self.backbone, pixel_values, self.config.pooling, **kwargs)


class SSLModel(SSLPreTrainedModel):
    """Base of every algorithm: `backbone`, `neck` and `head`, and where there are any `teacher`, `memory`,
    `target_generator`.

    A subclass implements `loss` and `predict`. Call the model itself with a mode rather than these methods: a method
    call goes around the hooks of DistributedDataParallel and `torch.compile`.
    """

    # Names (their last part) of parameters that the paper keeps free of weight decay besides biases and norms.
    no_weight_decay: tuple[str, ...] = ()
    # Whether BatchNorm uses the statistics of all processes.
    sync_batchnorm: bool = True
    # Beginnings of the names of parameters whose learning rate stays the same while the schedule changes the others'.
    constant_learning_rate: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if any(key.startswith("teacher.") for key in info["missing_keys"]):
            model.teacher.follow(model, momentum=0.0)
        model.freeze()  # loading makes every parameter trainable
        return (model, info) if output_loading_info else model

    def post_init(self):
        super().post_init()
        if hasattr(self, "teacher") and not any(parameter.is_meta for parameter in self.parameters()):
            self.teacher.follow(self, momentum=0.0)  # only now are student and teacher initialised
        self.freeze()

    def freeze(self) -> None:
        """Makes untrainable what the algorithm does not train; called after every construction and loading."""
        if hasattr(self, "teacher"):
            self.teacher.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module):
        """Necks and heads start as torch initialises them; the base class would draw them from N(0, 0.02)."""
        if isinstance(module, nn.Linear | nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, Queue):
            init.copy_(module.vectors, module.random_vectors())
            init.zeros_(module.pointer)
        elif isinstance(module, StepCounter):
            init.zeros_(module.steps)
        else:
            super()._init_weights(module)

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


class JointEmbeddingModel(SSLModel):
    """Base of the algorithms that compare projections of several views: `backbone`, then a projector as `neck`.

    A subclass makes `neck` (and `head`, `teacher`, `memory`) after calling this constructor, calls `post_init()` at the
    end of its own, and implements `loss`.
    """

    num_views = 2
    supports_loss_chunks = True
    # Images whose activations are held at once in `mode="loss"`; all of them when None.
    loss_chunk_size: int | None = None

    def __init__(self, config: JointEmbeddingConfig):
        super().__init__(config)
        self.backbone = self.build_backbone(config)
        self.hidden_size = backbone_hidden_size(self.backbone)

    def build_backbone(self, config: JointEmbeddingConfig) -> PreTrainedModel:
        return build_backbone(config.backbone_config, config.zero_init_residual)

    def project(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The student's projections `(B, projection_size)` of one view, not normalised."""
        return self._in_chunks(lambda images: self.neck(self.pooled_features(self.backbone, images)), pixel_values)

    @torch.no_grad()
    def teacher_project(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The teacher's projections `(B, projection_size)` of one view, without a gradient."""
        teacher = self.teacher
        return self._in_chunks(
            lambda images: teacher.neck(self.pooled_features(teacher.backbone, images)), pixel_values
        )

    def pooled_features(self, backbone: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
        return run_backbone(backbone, pixel_values, self.config.pooling).pooler_output

    def _in_chunks(self, function: Callable, pixel_values: torch.Tensor):
        """Applies a function to a batch, in chunks if `loss_chunk_size` says so, with the exact gradient.

        A chunk keeps its images only and is computed once more for its gradient, when the loss of the whole batch has
        said what the gradient of its projections is (gradient caching, arXiv 2101.06983). BatchNorm takes its statistics
        from a chunk then, and its running statistics see each chunk twice.
        """
        if self.loss_chunk_size is None or len(pixel_values) <= self.loss_chunk_size:
            return function(pixel_values)
        chunks = pixel_values.split(self.loss_chunk_size)
        if torch.is_grad_enabled():
            return torch.cat([checkpoint(function, chunk, use_reentrant=False) for chunk in chunks])
        return torch.cat([function(chunk) for chunk in chunks])

    def predict(self, pixel_values: torch.Tensor) -> ProjectionOutput:
        """`mode="predict"`: the L2-normalised projection of one view, so that two images can be compared."""
        self._check_pixel_values(pixel_values)
        with torch.no_grad():
            return ProjectionOutput(projection=normalize(self.project(pixel_values)))

    def _check_views(self, views: Sequence[torch.Tensor], same_size: bool = True) -> None:
        if isinstance(views, torch.Tensor) or len(views) != self.num_views:
            given = "one tensor" if isinstance(views, torch.Tensor) else f"a list of {len(views)}"
            raise ValueError(
                f"{type(self).__name__} needs {self.num_views} views of each image for mode='loss': a list of "
                f"{self.num_views} tensors (batch_size, {self.config.num_channels}, height, width); got {given}. In a "
                "recipe, the counts of the views add up to that."
            )
        for view in views:
            self._check_pixel_values(view)
        shapes = [tuple(view.shape) for view in views]
        if len({shape[0] for shape in shapes}) > 1 or (same_size and len(set(shapes)) > 1):
            raise ValueError(
                f"the views of {type(self).__name__} must match in batch size"
                f"{' and in size' if same_size else ''}; got {', '.join(map(str, shapes))}"
            )
        check_batch_for_batchnorm(self, views[0])


class SSLForImageClassification(SSLPreTrainedModel):
    """A linear classifier on the pooled features of an algorithm's backbone, for fine-tuning.

    `from_pretrained` takes the checkpoint of the pretrained algorithm: the backbone is loaded, neck and head are left
    out, the classifier is new.
    """

    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012 - transformers' name and type
        r"^(neck|head|teacher|memory|counter|target_generator)\."
    ]

    def __init__(self, config: SSLConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.backbone = self.build_backbone(config)
        self.classifier = nn.Linear(backbone_hidden_size(self.backbone), config.num_labels)
        self.post_init()

    def build_backbone(self, config: SSLConfig) -> PreTrainedModel:
        """The backbone as the algorithm's own model builds it, so that its weights fit."""
        return build_backbone(config.backbone_config)

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
