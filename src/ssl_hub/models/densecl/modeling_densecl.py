"""DenseCL: Dense Contrastive Learning for Self-Supervised Visual Pre-Training (arXiv 2011.09157).

MoCo v2, and the same for every position of the feature map: its key is that of the position in the other view whose
backbone feature is most alike.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ...distributed import num_processes, shuffle_batch, unshuffle_batch
from ...lifecycle import Progress
from ...modeling_joint_embedding import JointEmbeddingModel
from ...modeling_outputs import SSLLossOutput
from ...modeling_utils import SSLForImageClassification
from ...modules.backbones import backbone_map_size, feature_map, run_backbone
from ...modules.losses import in_float32, normalize, queue_contrast
from ...modules.memories import Queue
from ...modules.teachers import MomentumTeacher
from .configuration_densecl import DenseCLConfig


@in_float32
def match_positions(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """For each position of the queries `(B, D, L)`, that `(B, L)` of the most similar of the keys `(B, D, L)`."""
    return (queries.transpose(1, 2) @ keys).argmax(dim=2)


class PointwiseConv2d(nn.Conv2d):
    """A 1 x 1 convolution, computed as the matrix product that it is: faster for the few positions of a feature map."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.linear(features.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class DenseCLNeck(nn.Module):
    """`mlp` projects the pooled feature, `mlp2` the feature at every position."""

    def __init__(self, config: DenseCLConfig, hidden_size: int, map_size: int):
        super().__init__()
        width, size = config.projection_hidden_size, config.projection_size
        self.grid_size = config.grid_size
        self.mlp = nn.Sequential(nn.Linear(hidden_size, width), nn.ReLU(), nn.Linear(width, size))
        self.mlp2 = nn.Sequential(PointwiseConv2d(map_size, width, 1), nn.ReLU(), PointwiseConv2d(width, size, 1))

    def forward(self, pooled: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Projects pooled features `(B, D)` and feature maps `(B, D, H, W)`.

        Returns:
            Global projections `(B, P)`, dense ones `(B, P, L)` with L positions, and the mean of the dense ones `(B, P)`.
        """
        if self.grid_size is not None:
            features = F.adaptive_avg_pool2d(features, self.grid_size)
        dense = self.mlp2(features)
        return self.mlp(pooled), dense.flatten(2), dense.mean(dim=(2, 3))


class DenseCLModel(JointEmbeddingModel):
    """DenseCL (arXiv 2011.09157): `backbone`, `neck` with a global and a dense branch, `teacher` of both, `memory` with
    the queues `global_queue` and `dense_queue`."""

    config_class = DenseCLConfig
    sync_batchnorm = False  # keys are shuffled over the processes instead
    supports_loss_chunks = False  # its negatives come from the queues, so smaller batches do

    def __init__(self, config: DenseCLConfig):
        super().__init__(config)
        self.neck = DenseCLNeck(config, self.hidden_size, backbone_map_size(self.backbone))
        self.teacher = MomentumTeacher(backbone=self.backbone, neck=self.neck)
        self.memory = nn.ModuleDict(
            {name: Queue(config.queue_size, config.projection_size) for name in ("global_queue", "dense_queue")}
        )
        self.register_scheduled(dense_loss_weight=config.dense_loss_weight)
        self.post_init()

    def loss(self, pixel_values: list[torch.Tensor]) -> SSLLossOutput:
        """`mode="loss"`: a global and a dense InfoNCE against a queue each, which then take in the new keys.

        Args:
            pixel_values (list of 2 `torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Queries and keys, two views of each image.
        """
        self.check_views(pixel_values)
        features, query, dense_query, _ = self._encode(self.backbone, self.neck, pixel_values[0])
        with torch.no_grad():
            key_features, key, dense_key, mean_key = self._keys(pixel_values[1])
            match = match_positions(features, key_features)
            dense_key = dense_key.gather(2, match[:, None].expand(-1, dense_key.shape[1], -1))
        temperature = self.config.temperature
        global_queue, dense_queue = self.memory["global_queue"], self.memory["dense_queue"]
        global_loss = queue_contrast(query, key, global_queue.vectors.clone(), temperature)
        dense_loss = queue_contrast(dense_query, dense_key, dense_queue.vectors.clone(), temperature)
        if self.training:
            global_queue.enqueue(key)
            dense_queue.enqueue(mean_key)
        loss = global_loss.lerp(dense_loss, self.dense_loss_weight.to(global_loss.dtype))
        return SSLLossOutput(loss=loss, losses={"global": global_loss.detach(), "dense": dense_loss.detach()})

    def project(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The student's global projections `(B, projection_size)` of one view."""
        return self._encode(self.backbone, self.neck, pixel_values)[1]

    def _encode(self, backbone, neck, pixel_values):
        """Unit vectors: backbone features `(B, D, L)`, global projections, dense ones, the mean of the dense ones."""
        outputs = run_backbone(backbone, pixel_values, self.config.pooling)
        features = feature_map(backbone, outputs.last_hidden_state)
        projections = neck(outputs.pooler_output, features)
        if projections[1].shape[2] != features.shape[2] * features.shape[3]:
            raise ValueError(
                f"grid_size {self.config.grid_size} must be that of the backbone's feature map, whose positions are "
                f"matched: {features.shape[2]} x {features.shape[3]} for images of this size"
            )
        return tuple(normalize(tensor) for tensor in (features.flatten(2), *projections))

    def _keys(self, pixel_values):
        """The teacher's unit vectors, from batches that are shuffled over the processes."""
        teacher = self.teacher
        if num_processes() == 1:
            return self._encode(teacher.backbone, teacher.neck, pixel_values)
        shuffled, order = shuffle_batch(pixel_values)
        return tuple(unshuffle_batch(key, order) for key in self._encode(teacher.backbone, teacher.neck, shuffled))

    def begin_step(self, progress: Progress) -> None:
        started = progress.step >= self.config.dense_loss_start_step
        self.set_scheduled(dense_loss_weight=self.config.dense_loss_weight * started)

    def end_step(self, progress: Progress) -> None:
        self.teacher.follow(self, self.config.teacher_momentum)


class DenseCLForImageClassification(SSLForImageClassification):
    """DenseCL's backbone with a linear classifier on its pooled features."""

    config_class = DenseCLConfig
