"""Barlow Twins: Self-Supervised Learning via Redundancy Reduction (arXiv 2103.03230).

The correlations between the projections of two views, over a batch, are driven towards the identity matrix.
"""

import torch
from torch import nn
from transformers import initialization as init

from ...distributed import num_processes, sum_with_gradient
from ...modeling_joint_embedding import JointEmbeddingModel
from ...modeling_outputs import SSLLossOutput
from ...modeling_utils import SSLForImageClassification
from ...modules.losses import in_float32
from ...modules.necks import build_nonlinear_neck
from .configuration_barlowtwins import BarlowTwinsConfig


@in_float32
def cross_correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The matrix `(D, D)` of mean products over the batches `(B, D)` of all processes."""
    return sum_with_gradient(first.T @ second) / (len(first) * num_processes())


class BarlowTwinsHead(nn.Module):
    """Standardises the projections over the batch and compares their correlations with the identity.

    Over processes the statistics are those of the whole batch, as in the authors' code; MMSelfSup takes each process's.
    """

    def __init__(self, projection_size: int):
        super().__init__()
        self.bn = nn.BatchNorm1d(projection_size, affine=False)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of squared differences from 1 on the diagonal, and that of squares off it."""
        dtype = next(self.bn.buffers(), first).dtype  # float32 under autocast too
        correlation = cross_correlation(self.bn(first.to(dtype)), self.bn(second.to(dtype)))
        diagonal = correlation.diagonal()
        return (diagonal - 1).square().sum(), correlation.square().sum() - diagonal.square().sum()


class BarlowTwinsModel(JointEmbeddingModel):
    """Barlow Twins (arXiv 2103.03230): `backbone`, `neck` the projector, `head` the correlations."""

    config_class = BarlowTwinsConfig

    def __init__(self, config: BarlowTwinsConfig):
        super().__init__(config)
        self.neck = build_nonlinear_neck(config, "projection", self.hidden_size)
        self.head = BarlowTwinsHead(config.projection_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, mode="fan_out", nonlinearity="relu")
        else:
            super()._init_weights(module)

    def loss(self, pixel_values: list[torch.Tensor]) -> SSLLossOutput:
        """`mode="loss"`: the distance of the cross-correlation matrix from the identity.

        Args:
            pixel_values (list of 2 `torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Two views of each image.
        """
        self.check_views(pixel_values)
        first, second = (self.project(view) for view in pixel_values)
        on_diagonal, off_diagonal = self.head(first, second)
        loss = self.config.loss_scale * (on_diagonal + self.config.off_diagonal_weight * off_diagonal)
        return SSLLossOutput(
            loss=loss, losses={"on_diagonal": on_diagonal.detach(), "off_diagonal": off_diagonal.detach()}
        )


class BarlowTwinsForImageClassification(SSLForImageClassification):
    """Barlow Twins' backbone with a linear classifier on its pooled features."""

    config_class = BarlowTwinsConfig
