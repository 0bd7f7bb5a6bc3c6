"""SimSiam: Exploring Simple Siamese Representation Learning (arXiv 2011.10566).

The network predicts from one view its own projection of the other; the gradient stops at the latter.
"""

import torch

from ...lifecycle import ParameterRule
from ...modeling_joint_embedding import JointEmbeddingModel
from ...modeling_outputs import SSLLossOutput
from ...modeling_utils import SSLForImageClassification
from ...modules.heads import PredictorHead
from ...modules.losses import cosine_loss
from ...modules.necks import build_nonlinear_neck
from .configuration_simsiam import SimSiamConfig


class SimSiamModel(JointEmbeddingModel):
    """SimSiam (arXiv 2011.10566): `backbone`, `neck` the projector, `head` the predictor."""

    config_class = SimSiamConfig
    parameter_rules = (ParameterRule(r"^head\.predictor\.", constant_lr=True),)

    def __init__(self, config: SimSiamConfig):
        super().__init__(config)
        self.neck = build_nonlinear_neck(config, "projection", self.hidden_size)
        self.head = PredictorHead(build_nonlinear_neck(config, "predictor", config.projection_size))
        self.post_init()

    def loss(self, pixel_values: list[torch.Tensor]) -> SSLLossOutput:
        """`mode="loss"`: the mean of the negative cosine similarities of both directions, in [-1, 1].

        Args:
            pixel_values (list of 2 `torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Two views of each image.
        """
        self.check_views(pixel_values)
        first, second = (self.project(view) for view in pixel_values)
        loss = 0.5 * (cosine_loss(self.head(first), second) + cosine_loss(self.head(second), first))
        return SSLLossOutput(loss=loss, losses={"cosine": loss.detach()})


class SimSiamForImageClassification(SSLForImageClassification):
    """SimSiam's backbone with a linear classifier on its pooled features."""

    config_class = SimSiamConfig
