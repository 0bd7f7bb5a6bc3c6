"""BYOL: Bootstrap Your Own Latent (arXiv 2006.07733).

The student predicts from one view what its momentum teacher makes of the other. There are no negatives.
"""

import torch

from ...lifecycle import Progress, cosine_ramp
from ...modeling_joint_embedding import JointEmbeddingModel
from ...modeling_outputs import SSLLossOutput
from ...modeling_utils import SSLForImageClassification
from ...modules.heads import PredictorHead
from ...modules.losses import cosine_loss
from ...modules.necks import build_nonlinear_neck
from ...modules.teachers import MomentumTeacher
from .configuration_byol import BYOLConfig


class BYOLModel(JointEmbeddingModel):
    """BYOL (arXiv 2006.07733): `backbone`, `neck` the projector, `head` the predictor, `teacher` of the first two."""

    config_class = BYOLConfig

    def __init__(self, config: BYOLConfig):
        super().__init__(config)
        self.neck = build_nonlinear_neck(config, "projection", self.hidden_size)
        self.head = PredictorHead(build_nonlinear_neck(config, "predictor", config.projection_size))
        self.teacher = MomentumTeacher(backbone=self.backbone, neck=self.neck)
        self.post_init()

    def loss(self, pixel_values: list[torch.Tensor]) -> SSLLossOutput:
        """`mode="loss"`: twice the sum of the negative cosine similarities of both directions, in [-4, 4].

        The paper's loss is this plus 4.

        Args:
            pixel_values (list of 2 `torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Two views of each image.
        """
        self.check_views(pixel_values)
        projections = [self.project(view) for view in pixel_values]
        targets = [self.teacher_project(view) for view in pixel_values]
        losses = [
            cosine_loss(self.head(projections[0]), targets[1]),
            cosine_loss(self.head(projections[1]), targets[0]),
        ]
        loss = 2 * (losses[0] + losses[1])
        return SSLLossOutput(loss=loss, losses={"cosine": loss.detach()})

    def end_step(self, progress: Progress) -> None:
        self.teacher.follow(self, cosine_ramp(self.config.teacher_base_momentum, 1.0, progress.share))


class BYOLForImageClassification(SSLForImageClassification):
    """BYOL's backbone with a linear classifier on its pooled features."""

    config_class = BYOLConfig
