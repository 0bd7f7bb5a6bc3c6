"""MoCo v3: An Empirical Study of Training Self-Supervised Vision Transformers (arXiv 2104.02057).

A prediction from one view has to find the momentum teacher's projection of the other view among those of the batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from ...distributed import gather, process_index
from ...lifecycle import Progress, cosine_ramp
from ...modeling_joint_embedding import JointEmbeddingModel
from ...modeling_outputs import SSLLossOutput
from ...modeling_utils import SSLForImageClassification
from ...modules.backbones import build_backbone, explain_failure
from ...modules.heads import PredictorHead
from ...modules.losses import in_float32, normalize
from ...modules.necks import build_nonlinear_neck
from ...modules.teachers import MomentumTeacher
from ...modules.vit import FixedPositionViTEmbeddings, FixedPositionViTModel, init_sincos_positions
from .configuration_mocov3 import MoCoV3Config


class MoCoV3ViTModel(FixedPositionViTModel):
    """A ViT with fixed sine-cosine positions and the paper's initialisation. Its checkpoint is a plain `ViTModel`'s."""

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            bound = math.sqrt(6 / (module.weight[0].numel() + module.out_channels))
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, FixedPositionViTEmbeddings):
            init.normal_(module.cls_token, std=1e-6)
            init_sincos_positions(module)


def build_mocov3_backbone(config: MoCoV3Config) -> PreTrainedModel:
    if config.backbone_config.model_type == "vit":
        with explain_failure(config.backbone_config):
            return MoCoV3ViTModel(config.backbone_config)
    return build_backbone(config.backbone_config, config.zero_init_residual)


@in_float32
def batch_contrast(prediction: torch.Tensor, key: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE of predictions `(B, D)` with their keys `(B, D)` against the keys of all processes, times `2 * temperature`.

    No gradient goes into the keys.
    """
    keys = gather(normalize(key))
    logits = normalize(prediction) @ keys.T / temperature
    labels = torch.arange(len(prediction), device=prediction.device) + len(prediction) * process_index()
    return 2 * temperature * F.cross_entropy(logits, labels)


class MoCoV3Model(JointEmbeddingModel):
    """MoCo v3 (arXiv 2104.02057): `backbone`, `neck` the projector, `head` the predictor, `teacher` of the first two."""

    config_class = MoCoV3Config

    def __init__(self, config: MoCoV3Config):
        super().__init__(config)
        self.neck = build_nonlinear_neck(config, "projection", self.hidden_size)
        self.head = PredictorHead(build_nonlinear_neck(config, "predictor", config.projection_size))
        self.teacher = MomentumTeacher(backbone=self.backbone, neck=self.neck)
        self.post_init()

    def build_backbone(self, config: MoCoV3Config) -> PreTrainedModel:
        return build_mocov3_backbone(config)

    def freeze(self) -> None:
        super().freeze()
        if self.config.freeze_patch_projection and isinstance(self.backbone, MoCoV3ViTModel):
            self.backbone.embeddings.patch_embeddings.requires_grad_(False)

    def loss(self, pixel_values: list[torch.Tensor]) -> SSLLossOutput:
        """`mode="loss"`: the sum of the contrastive losses of both directions.

        Args:
            pixel_values (list of 2 `torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Two views of each image.
        """
        self.check_views(pixel_values)
        temperature = self.config.temperature
        projections = [self.project(view) for view in pixel_values]
        keys = [self.teacher_project(view) for view in pixel_values]
        loss = batch_contrast(self.head(projections[0]), keys[1], temperature)
        loss = loss + batch_contrast(self.head(projections[1]), keys[0], temperature)
        return SSLLossOutput(loss=loss, losses={"contrastive": loss.detach()})

    def end_step(self, progress: Progress) -> None:
        self.teacher.follow(self, cosine_ramp(self.config.teacher_base_momentum, 1.0, progress.share))


class MoCoV3ForImageClassification(SSLForImageClassification):
    """MoCo v3's backbone with a linear classifier on its pooled features."""

    config_class = MoCoV3Config

    def build_backbone(self, config: MoCoV3Config) -> PreTrainedModel:
        return build_mocov3_backbone(config)
