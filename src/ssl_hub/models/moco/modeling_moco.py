"""MoCo: Momentum Contrast (v1: arXiv 1911.05722, v2: arXiv 2003.04297).

A query has to find the key that a momentum teacher made of the same image among a queue of keys of earlier images.
"""

import torch
from torch import nn

from ...distributed import num_processes, shuffle_batch, unshuffle_batch
from ...lifecycle import Progress
from ...modeling_joint_embedding import JointEmbeddingModel
from ...modeling_outputs import SSLLossOutput
from ...modeling_utils import SSLForImageClassification
from ...modules.losses import normalize, queue_contrast
from ...modules.memories import Queue
from ...modules.teachers import MomentumTeacher
from .configuration_moco import MoCoConfig


class MoCoNeck(nn.Module):
    """One linear layer, `fc` (v1), or two with ReLU in between, `mlp` (v2)."""

    def __init__(self, config: MoCoConfig, hidden_size: int):
        super().__init__()
        width, size = config.projection_hidden_size, config.projection_size
        if config.mlp_projector:
            self.mlp = nn.Sequential(nn.Linear(hidden_size, width), nn.ReLU(), nn.Linear(width, size))
        else:
            self.fc = nn.Linear(hidden_size, size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.mlp(features) if hasattr(self, "mlp") else self.fc(features)


class MoCoModel(JointEmbeddingModel):
    """MoCo v1 and v2: `backbone`, `neck` the projector, `teacher` of both, `memory` the queue of its keys."""

    config_class = MoCoConfig
    sync_batchnorm = False  # keys are shuffled over the processes instead

    def __init__(self, config: MoCoConfig):
        super().__init__(config)
        self.neck = MoCoNeck(config, self.hidden_size)
        self.teacher = MomentumTeacher(backbone=self.backbone, neck=self.neck)
        self.memory = Queue(config.queue_size, config.projection_size)
        self.post_init()

    def loss(self, pixel_values: list[torch.Tensor]) -> SSLLossOutput:
        """`mode="loss"`: InfoNCE against the queue, which then takes in the new keys (in training mode).

        Args:
            pixel_values (list of 2 `torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Queries and keys, two views of each image.
        """
        self.check_views(pixel_values)
        query = normalize(self.project(pixel_values[0]))
        key = self.keys(pixel_values[1])
        loss = queue_contrast(query, key, self.memory.vectors.clone(), self.config.temperature)
        if self.training:
            self.memory.enqueue(key)
        return SSLLossOutput(loss=loss, losses={"contrastive": loss.detach()})

    @torch.no_grad()
    def keys(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The teacher's unit keys, from batches that are shuffled over the processes."""
        if num_processes() == 1:
            return normalize(self.teacher_project(pixel_values))
        shuffled, order = shuffle_batch(pixel_values)
        return unshuffle_batch(normalize(self.teacher_project(shuffled)), order)

    def end_step(self, progress: Progress) -> None:
        self.teacher.follow(self, self.config.teacher_momentum)


class MoCoForImageClassification(SSLForImageClassification):
    """MoCo's backbone with a linear classifier on its pooled features."""

    config_class = MoCoConfig
