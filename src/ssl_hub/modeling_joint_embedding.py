"""The base of the algorithms that compare the projections of several views of an image."""

from collections.abc import Callable, Sequence

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from .configuration_utils import JointEmbeddingConfig
from .distributed import check_batch_for_batchnorm
from .modeling_outputs import (
    ProjectionOutput,
)
from .modeling_utils import SSLModel
from .modules.backbones import backbone_hidden_size, build_backbone, run_backbone
from .modules.losses import normalize


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
