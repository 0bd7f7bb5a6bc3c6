"""SwAV: Unsupervised Learning of Visual Features by Contrasting Cluster Assignments (arXiv 2006.09882).

The large crops of a batch are assigned evenly to prototypes; all other crops of an image predict its assignment.
"""

from itertools import groupby

import torch
from torch import nn
from transformers import initialization as init

from ...distributed import gather, num_processes, process_index, sum_
from ...lifecycle import Progress
from ...modeling_joint_embedding import JointEmbeddingModel
from ...modeling_outputs import SSLLossOutput
from ...modeling_utils import SSLForImageClassification
from ...modules.losses import in_float32, normalize
from .configuration_swav import SwAVConfig


@torch.no_grad()
@in_float32
def sinkhorn(
    scores: torch.Tensor, epsilon: float, iterations: int, counted: torch.Tensor | None = None
) -> torch.Tensor:
    """Assigns samples to prototypes so that each prototype gets the same share of those of all processes.

    Args:
        scores: similarities `(..., B, K)` of samples and prototypes, in [-1, 1].
        counted: `(B,)`, 1 for the samples that take part and 0 for the others; all take part by default.

    Returns:
        `torch.Tensor`: assignments `(..., B, K)`, whose rows add up to 1.
    """
    counted = scores.new_ones(scores.shape[-2]) if counted is None else counted
    num_samples = counted.sum() * num_processes()
    assignments = (scores / epsilon).exp() * counted[:, None]
    assignments /= sum_(assignments.sum(dim=(-2, -1), keepdim=True))
    for _ in range(iterations):
        # A prototype that no sample comes near can underflow to nothing; it stays so instead of becoming NaN.
        assignments /= sum_(assignments.sum(dim=-2, keepdim=True)).clamp(min=1e-12) * scores.shape[-1]
        # Brackets: the sum of a sample far from all prototypes would be lost beside a 1.
        assignments /= (assignments.sum(dim=-1) + (1 - counted))[..., None] * num_samples
    return assignments * num_samples


class SwAVNeck(nn.Module):
    """Two linear layers with BatchNorm and ReLU in between, or one."""

    def __init__(self, config: SwAVConfig, hidden_size: int):
        super().__init__()
        width, size = config.projection_hidden_size, config.projection_size
        if config.mlp_projector:
            self.projection_neck = nn.Sequential(
                nn.Linear(hidden_size, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, size)
            )
        else:
            self.projection_neck = nn.Linear(hidden_size, size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.projection_neck(features)


class SwAVHead(nn.Module):
    """Holds the prototypes, unit vectors."""

    def __init__(self, config: SwAVConfig):
        super().__init__()
        self.prototypes = nn.Linear(config.projection_size, config.num_prototypes, bias=False)

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        self.prototypes.weight.copy_(normalize(self.prototypes.weight))


class SwAVQueue(nn.Module):
    """The latest projections of each large crop, over all processes.

    Buffer: `vectors` `(num_large_crops, size, dim)`, the newest first; zero where nothing has come in yet.
    """

    def __init__(self, num_crops: int, size: int, dim: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(num_crops, size, dim))

    def is_full(self) -> torch.Tensor:
        return (self.vectors[:, -1] != 0).any()

    def part(self) -> torch.Tensor:
        """This process's share of the queue: Sinkhorn adds the processes up."""
        return self.vectors.chunk(num_processes(), dim=1)[process_index()]

    @torch.no_grad()
    def push(self, projections: torch.Tensor, is_open: torch.Tensor) -> None:
        """Takes in the projections `(num_large_crops, B, dim)` of all processes."""
        new = gather(projections.transpose(0, 1).to(self.vectors.dtype)).transpose(0, 1)
        is_open = is_open & new.isfinite().all()  # a bad batch must not stay in the queue
        moved = torch.cat([new, self.vectors], dim=1)[:, : self.vectors.shape[1]]
        self.vectors.copy_(torch.where(is_open, moved, self.vectors))


class SwAVModel(JointEmbeddingModel):
    """SwAV (arXiv 2006.09882): `backbone`, `neck` the projector, `head` the prototypes, `memory` the queue."""

    config_class = SwAVConfig

    def __init__(self, config: SwAVConfig):
        super().__init__(config)
        self.num_views = config.num_large_crops + config.num_small_crops
        self.neck = SwAVNeck(config, self.hidden_size)
        self.head = SwAVHead(config)
        self.memory = SwAVQueue(config.num_large_crops, config.queue_size, config.projection_size)
        self.register_scheduled(prototypes_train=1, queue_open=1)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, SwAVQueue):
            init.zeros_(module.vectors)

    def loss(self, pixel_values: list[torch.Tensor]) -> SSLLossOutput:
        """`mode="loss"`: the cross entropy between the assignments of the large crops and the other crops' predictions.

        Args:
            pixel_values (list of `torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                `num_large_crops` large crops of each image, then `num_small_crops` small ones. Neighbours of one size run
                as one batch.
        """
        self.check_views(pixel_values, same_size=False)
        groups = [torch.cat(list(group)) for _, group in groupby(pixel_values, key=lambda view: view.shape[-2:])]
        features = torch.cat([self.in_chunks(self._features, group) for group in groups])
        projections = normalize(self.neck(features)).unflatten(0, (self.num_views, -1))
        self.head.normalize_prototypes()
        prototypes = self.head.prototypes.weight
        prototypes = torch.where(self.prototypes_train > 0, prototypes, prototypes.detach())
        loss = self._swapped_prediction(projections, prototypes)
        return SSLLossOutput(loss=loss, losses={"swapped_prediction": loss.detach()})

    def _features(self, pixel_values):
        return self.pooled_features(self.backbone, pixel_values)

    def _swapped_prediction(self, projections, prototypes):
        config = self.config
        large = config.num_large_crops
        scores = prototype_scores(projections, prototypes)
        to_assign, counted = scores[:large].detach(), None
        if config.queue_size > 0:
            is_open = self.queue_open > 0
            served = (is_open & self.memory.is_full()).to(scores.dtype)
            queued = prototype_scores(self.memory.part(), prototypes).detach()
            to_assign = torch.cat([queued, to_assign], dim=1)
            counted = torch.cat([served.expand(queued.shape[1]), scores.new_ones(scores.shape[1])])
            if self.training:
                self.memory.push(projections[:large].detach(), is_open)
        assignments = sinkhorn(to_assign, config.sinkhorn_epsilon, config.sinkhorn_iterations, counted)
        assignments = assignments[:, -scores.shape[1] :]
        # Each large crop's assignments are predicted by all other crops.
        log_probabilities = (scores / config.temperature).log_softmax(dim=2)
        others = log_probabilities.sum(dim=0) - log_probabilities[:large]
        return -(assignments * others).sum(dim=2).mean() / (self.num_views - 1)

    def begin_run(self, num_samples: int | None) -> None:
        size, processes = self.config.queue_size, num_processes()
        if size % processes != 0:
            raise ValueError(
                f"queue_size must be a multiple of the number of processes, {processes}, which share the queue: got "
                f"{size}; near it is {max(size // processes, 1) * processes}"
            )

    def begin_step(self, progress: Progress) -> None:
        config = self.config
        self.set_scheduled(prototypes_train=progress.step >= config.freeze_prototypes_steps)
        if config.queue_size > 0 and config.queue_start_epoch > 0:
            self.set_scheduled(queue_open=progress.epoch >= config.queue_start_epoch)


@in_float32
def prototype_scores(projections: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Similarities `(..., B, K)` of unit projections and unit prototypes."""
    return projections @ prototypes.T


class SwAVForImageClassification(SSLForImageClassification):
    """SwAV's backbone with a linear classifier on its pooled features."""

    config_class = SwAVConfig
