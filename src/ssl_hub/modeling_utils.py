"""The base of every algorithm: three modes behind one `forward`, and the life-cycle hooks that a trainer calls."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_utils import ClusteringConfig, JointEmbeddingConfig, MaskedPatchConfig, SSLConfig
from .distributed import check_batch_for_batchnorm
from .lifecycle import FeatureTable, ParameterRule, Progress
from .modeling_outputs import (
    ClusterOutput,
    PatchPredictionOutput,
    ProjectionOutput,
    ReconstructionOutput,
    SSLLossOutput,
)
from .modules.backbones import backbone_hidden_size, build_backbone, run_backbone
from .modules.clustering import check_clusters, cluster_weights, describe_clusters
from .modules.heads import ClassifierHead
from .modules.losses import normalize, target_loss, to_float32, weighted_cross_entropy
from .modules.masking import (
    aligned_patch_mask,
    blockwise_patch_mask,
    check_mask_shape,
    check_patch_mask,
    draw_patches,
    pixel_mask,
    take_patches,
    visible_patch_indices,
)
from .modules.memories import ClusterMemory, Queue
from .modules.target_config import MaskedTargetConfig
from .modules.target_generators import build_target_generator

MODES = ("tensor", "loss", "predict")

# The submodules that an algorithm has besides its backbone.
SUBMODULES = ("neck", "head", "teacher", "memory", "target_generator")


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

    def check_pixel_values(self, pixel_values: torch.Tensor) -> None:
        """Raises `ValueError` unless `pixel_values` are a batch of images `(B, C, H, W)` for this model."""
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

    def _backbone_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        self.check_pixel_values(pixel_values)
        # The backbone reads its own configuration; a user sets these on ours. Passed on only where they are asked for:
        # not every backbone takes both.
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name) is None:
                kwargs[name] = getattr(self.config, name, None)
            if not kwargs[name]:
                del kwargs[name]
        return run_backbone(self.backbone, self.backbone_input(pixel_values), self.config.pooling, **kwargs)


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

    @property
    def cluster_labels(self) -> torch.Tensor | None:
        """The clusters `(num_samples,)` of the dataset's images on the CPU, -1 for none; None without clusters."""
        return None

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


class MaskedPatchModel(SSLModel):
    """Base of the algorithms that reconstruct masked patches of an image; `config` says how masks are drawn."""

    config: MaskedPatchConfig

    def grid_size(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """Rows and columns of patches."""
        self.check_pixel_values(pixel_values)
        (height, width), patch_size = pixel_values.shape[-2:], self.config.patch_size
        if height % patch_size != 0 or width % patch_size != 0:
            raise ValueError(
                f"height and width of the images must be multiples of the patch size {patch_size}; got {height} x {width}"
            )
        return height // patch_size, width // patch_size

    def patch_mask(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None) -> torch.Tensor:
        """The mask `(batch_size, num_patches)` that is given, or one that is drawn."""
        config, (rows, columns) = self.config, self.grid_size(pixel_values)
        batch_size, num_patches = len(pixel_values), rows * columns
        if bool_masked_pos is not None:
            check_mask_shape(bool_masked_pos, batch_size, num_patches)
            return bool_masked_pos.bool()
        num_masked, device = config.num_masked_patches(num_patches), pixel_values.device
        if config.mask_kind == "aligned":
            if rows % config.mask_unit != 0 or columns % config.mask_unit != 0:
                raise ValueError(
                    f"height and width of the images must be multiples of mask_cell_size {config.mask_cell_size}; got "
                    f"{pixel_values.shape[-2]} x {pixel_values.shape[-1]}"
                )
            return aligned_patch_mask(batch_size, rows, columns, num_masked, device, config.mask_unit)
        if config.mask_kind == "blockwise":
            return blockwise_patch_mask(batch_size, rows, columns, num_masked, device)
        return draw_patches(batch_size, num_patches, num_masked, device)

    def split_patches(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The mask `(B, num_patches)`, given or drawn, and the indices of visible `(B, V)` and masked patches `(B, M)`.

        A mask that is given must remove as many patches from every image, if the model is compiled as many as `config`
        says.
        """
        mask = self.patch_mask(pixel_values, bool_masked_pos)
        batch_size, num_patches = mask.shape
        num_masked = self.config.num_masked_patches(num_patches)
        if bool_masked_pos is not None:
            num_masked = check_patch_mask(mask, batch_size, num_patches, num_masked)
        return mask, visible_patch_indices(mask, num_patches - num_masked), visible_patch_indices(~mask, num_masked)

    def reconstruction_output(
        self, pixel_values: torch.Tensor, prediction: torch.Tensor, mask: torch.Tensor
    ) -> ReconstructionOutput:
        """What `mode="predict"` returns, of normalised pixels `(B, C, H, W)` and a mask of patches."""
        pixel_values, prediction = to_float32(pixel_values), to_float32(prediction)
        mean = pixel_values.new_tensor(self.config.image_mean)[:, None, None]
        std = pixel_values.new_tensor(self.config.image_std)[:, None, None]
        image = pixel_values * std + mean
        masked_pixels = pixel_mask(mask, self.grid_size(pixel_values), self.config.patch_size)
        return ReconstructionOutput(
            reconstruction=prediction * std + mean,
            masked_image=image.masked_fill(masked_pixels, 0.5),
            mask=mask,
        )


class MaskedTargetModel(MaskedPatchModel):
    """Base of the algorithms that predict of masked patches what a target generator makes of them."""

    config: MaskedTargetConfig

    def __init__(self, config: MaskedTargetConfig):
        super().__init__(config)
        self.target_generator = build_target_generator(config, config.patch_size)

    def begin_run(self, num_samples: int | None) -> None:
        self.target_generator.load()

    def masked_targets(
        self, pixel_values: torch.Tensor, target_pixel_values: torch.Tensor | None, masked_patches: torch.Tensor
    ) -> torch.Tensor:
        """Targets of the patches with these indices `(B, M)`: tokens `(B, M)` or vectors `(B, M, size)`."""
        targets = self.target_generator(pixel_values, target_pixel_values)
        return take_patches(targets, masked_patches) if targets.ndim == 3 else targets.gather(1, masked_patches)

    def prediction_output(
        self,
        pixel_values: torch.Tensor,
        prediction: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor,
        masked_patches: torch.Tensor,
    ) -> PatchPredictionOutput:
        """What `mode="predict"` returns, of predictions `(B, M, size)` and their targets, at the indices `(B, M)`."""
        if self.target_generator.is_discrete:
            tokens = prediction.argmax(dim=-1)
            accuracy = (tokens == target).float().mean(dim=1)
            return PatchPredictionOutput(prediction=tokens, target=target, accuracy=accuracy, mask=mask)
        prediction = to_float32(prediction)
        everywhere = prediction.new_zeros(*mask.shape, prediction.shape[2])
        everywhere.scatter_(1, masked_patches[..., None].expand_as(prediction), prediction)
        picture = self.target_generator.render(everywhere, pixel_values)
        if picture is None:
            return PatchPredictionOutput(prediction=prediction, target=target, mask=mask)
        image = self.target_generator.denormalize(pixel_values)
        masked_pixels = pixel_mask(mask, self.grid_size(pixel_values), self.config.patch_size)
        return PatchPredictionOutput(
            reconstruction=torch.where(masked_pixels, picture, image),
            masked_image=image.masked_fill(masked_pixels, 0.5),
            mask=mask,
            prediction=prediction,
            target=target,
        )


class MaskTokenModel(MaskedTargetModel):
    """Base of the algorithms whose `backbone` sees a mask token in the place of a masked patch, and whose `neck` is one
    linear layer.

    A subclass implements `build_backbone`. The backbone takes `bool_masked_pos` and returns a class token first.
    """

    def __init__(self, config: MaskedTargetConfig):
        super().__init__(config)
        self.backbone = self.build_backbone(config)
        self.neck = nn.Linear(config.backbone_config.hidden_size, self.target_generator.size)
        self.post_init()

    def build_backbone(self, config: MaskedTargetConfig) -> PreTrainedModel:
        raise NotImplementedError(f"{type(self).__name__} does not implement build_backbone()")

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self.neck:
            init.trunc_normal_(module.weight, std=0.02)
            init.zeros_(module.bias)

    def loss(
        self,
        pixel_values: torch.Tensor,
        *,
        bool_masked_pos: torch.Tensor | None = None,
        target_pixel_values: torch.Tensor | None = None,
    ) -> SSLLossOutput:
        """`mode="loss"`: the error of what is predicted of the masked patches.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`, *optional*):
                `True` where a patch is masked, as many in every image (as `config` says, if the model is compiled);
                drawn as `config` says when not given.
            target_pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, target_height, target_width)`, *optional*):
                The same crops, of the size and normalised as the target generator takes them. Made from `pixel_values`
                when not given.
        """
        _, masked_patches, prediction = self._predict_patches(pixel_values, bool_masked_pos)
        loss = target_loss(prediction, self.masked_targets(pixel_values, target_pixel_values, masked_patches))
        return SSLLossOutput(loss=loss, losses={"main": loss.detach()})

    @torch.no_grad()
    def predict(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        target_pixel_values: torch.Tensor | None = None,
    ) -> PatchPredictionOutput:
        """`mode="predict"`: what is predicted of the masked patches. Takes what `mode="loss"` takes."""
        mask, masked_patches, prediction = self._predict_patches(pixel_values, bool_masked_pos)
        target = self.masked_targets(pixel_values, target_pixel_values, masked_patches)
        return self.prediction_output(pixel_values, prediction, target, mask, masked_patches)

    def _predict_patches(self, pixel_values, bool_masked_pos):
        mask, _, masked_patches = self.split_patches(pixel_values, bool_masked_pos)
        tokens = self.backbone(pixel_values, bool_masked_pos=mask, interpolate_pos_encoding=True).last_hidden_state
        return mask, masked_patches, self.neck(take_patches(tokens[:, 1:], masked_patches))


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
        return self.in_chunks(lambda images: self.neck(self.pooled_features(self.backbone, images)), pixel_values)

    @torch.no_grad()
    def teacher_project(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The teacher's projections `(B, projection_size)` of one view, without a gradient."""
        teacher = self.teacher
        return self.in_chunks(lambda images: teacher.neck(self.pooled_features(teacher.backbone, images)), pixel_values)

    def pooled_features(self, backbone: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
        return run_backbone(backbone, pixel_values, self.config.pooling).pooler_output

    def in_chunks(self, function: Callable, pixel_values: torch.Tensor):
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
        self.check_pixel_values(pixel_values)
        with torch.no_grad():
            return ProjectionOutput(projection=normalize(self.project(pixel_values)))

    def check_views(self, views: Sequence[torch.Tensor], same_size: bool = True) -> None:
        """Raises `ValueError` unless `views` are `num_views` batches of the same images, and of one size if asked."""
        if isinstance(views, torch.Tensor) or len(views) != self.num_views:
            given = "one tensor" if isinstance(views, torch.Tensor) else f"a list of {len(views)}"
            raise ValueError(
                f"{type(self).__name__} needs {self.num_views} views of each image for mode='loss': a list of "
                f"{self.num_views} tensors (batch_size, {self.config.num_channels}, height, width); got {given}. In a "
                "recipe, the counts of the views add up to that."
            )
        for view in views:
            self.check_pixel_values(view)
        shapes = [tuple(view.shape) for view in views]
        if len({shape[0] for shape in shapes}) > 1 or (same_size and len(set(shapes)) > 1):
            raise ValueError(
                f"the views of {type(self).__name__} must match in batch size"
                f"{' and in size' if same_size else ''}; got {', '.join(map(str, shapes))}"
            )
        check_batch_for_batchnorm(self, views[0])


class ClusteringModel(SSLModel):
    """Base of the algorithms that classify images into clusters of their own features: `backbone`, then `neck` if there
    is one, `head` the classifier, `memory` the clusters.

    A subclass makes them after calling this constructor, calls `post_init()` at the end of its own, and implements
    `project`, `clustered` and `begin_epoch`.
    """

    # The classifier starts anew with the clusters; what it learned for the last ones must not push it on.
    parameter_rules = (ParameterRule(r"^head\.", momentum=0.0),)
    training_state = ("memory.labels", "memory.features")
    _keys_to_ignore_on_load_unexpected = [r"^memory\.(labels|features)$"]  # noqa: RUF012 - transformers' name and type
    memory: ClusterMemory
    head: ClassifierHead
    min_cluster_size = 1

    def __init__(self, config: ClusteringConfig):
        super().__init__(config)
        self.backbone = build_backbone(config.backbone_config)
        self.hidden_size = backbone_hidden_size(self.backbone)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ClusterMemory):
            module.init_buffers()

    def project(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What is classified `(B, D)`."""
        raise NotImplementedError

    def clustered(self, projections: torch.Tensor) -> torch.Tensor:
        """The unit vectors `(B, dim)` that are clustered, of what is classified."""
        raise NotImplementedError

    def classify(self, projections: torch.Tensor, indices: torch.Tensor) -> SSLLossOutput:
        """The loss of classifying the images in these rows of the dataset into their clusters."""
        self.memory.check_indices(indices, len(projections))
        labels = self.memory.labels[indices]
        logits = self.head(projections)
        loss = weighted_cross_entropy(logits, labels, self.memory.class_weights, self.config.weighted_mean)
        losses = describe_clusters(self.memory.labels, self.config.num_clusters)
        losses["cross_entropy"] = loss.detach()
        losses["accuracy"] = (logits.detach().argmax(dim=1) == labels).float().mean()
        return SSLLossOutput(loss=loss, losses=losses)

    def predict(self, pixel_values: torch.Tensor) -> ClusterOutput:
        """`mode="predict"`: the cluster of each image."""
        with torch.no_grad():
            projections = self.project(pixel_values)
            logits = self.head(projections)
            cluster_ids = logits.argmax(dim=1)
            distances = (self.clustered(projections) - self.memory.centroids[cluster_ids]).norm(dim=1)
        return ClusterOutput(logits=logits, cluster_ids=cluster_ids, distances=distances)

    @property
    def cluster_labels(self) -> torch.Tensor | None:
        return None if self.memory.labels is None else self.memory.labels.to("cpu", copy=True)

    def begin_run(self, num_samples: int | None) -> None:
        if num_samples is None:
            raise ValueError(
                f"{type(self).__name__} keeps the cluster of every image, and a stream does not say how many there are: "
                "load the dataset without streaming, or take an algorithm that needs no bank, such as SwAV"
            )
        check_clusters(num_samples, self.config.num_clusters, self.min_cluster_size)
        self.memory.start(num_samples)

    def update_class_weights(self) -> None:
        self.memory.class_weights.copy_(cluster_weights(self.memory.sizes(), self.config.class_weight_power))

    @torch.no_grad()
    def redraw_head(self) -> None:
        """Draws the classifier anew, alike on every process; `_init_weights` leaves alone what was loaded."""
        linear = self.head.classifier
        linear.weight.copy_(linear.weight_std * torch.randn(linear.weight.shape))
        linear.bias.zero_()
        self.redrawn_parameters = tuple(linear.parameters())


class SSLForImageClassification(SSLPreTrainedModel):
    """A linear classifier on the pooled features of an algorithm's backbone, for fine-tuning.

    `from_pretrained` takes the checkpoint of the pretrained algorithm: the backbone is loaded, neck and head are left
    out, the classifier is new.
    """

    _keys_to_ignore_on_load_unexpected = [rf"^({'|'.join(SUBMODULES)})\."]  # noqa: RUF012 - transformers' name and type

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
