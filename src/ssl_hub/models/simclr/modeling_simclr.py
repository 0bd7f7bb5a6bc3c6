"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (arXiv 2002.05709).

Each view of an image has to find the other view of the same image among all views of the batch.
"""

import torch
import torch.nn.functional as F

from ...distributed import gather_with_gradient
from ...modeling_joint_embedding import JointEmbeddingModel
from ...modeling_outputs import SSLLossOutput
from ...modeling_utils import SSLForImageClassification
from ...modules.losses import in_float32
from ...modules.necks import build_nonlinear_neck
from .configuration_simclr import SimCLRConfig


@in_float32
def nt_xent_loss(projections: torch.Tensor, temperature: float) -> torch.Tensor:
    """The normalised temperature-scaled cross entropy over the views of all processes.

    Args:
        projections: `(2 * batch_size, projection_size)`, the two views of an image in neighbouring rows.
    """
    # SimCLR's original adds 1e-10 to the norm instead of bounding it from below.
    projections = projections / (projections.norm(dim=1, keepdim=True) + 1e-10)
    projections = gather_with_gradient(projections)
    logits = projections @ projections.T / temperature
    logits = logits.masked_fill(torch.eye(len(logits), dtype=torch.bool, device=logits.device), -torch.inf)
    partners = torch.arange(len(logits), device=logits.device) ^ 1
    return F.cross_entropy(logits, partners)


class SimCLRModel(JointEmbeddingModel):
    """SimCLR (arXiv 2002.05709): `backbone`, and an MLP with BatchNorm as `neck`."""

    config_class = SimCLRConfig

    def __init__(self, config: SimCLRConfig):
        super().__init__(config)
        self.neck = build_nonlinear_neck(config, "projection", self.hidden_size)
        self.post_init()

    def loss(self, pixel_values: list[torch.Tensor]) -> SSLLossOutput:
        """`mode="loss"`: the NT-Xent loss.

        Args:
            pixel_values (list of 2 `torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Two views of each image.
        """
        self.check_views(pixel_values)
        # One batch of both views, so that BatchNorm sees them together, as in the original.
        both = torch.stack(pixel_values, dim=1).flatten(0, 1)
        loss = nt_xent_loss(self.project(both), self.config.temperature)
        return SSLLossOutput(loss=loss, losses={"contrastive": loss.detach()})


class SimCLRForImageClassification(SSLForImageClassification):
    """SimCLR's backbone with a linear classifier on its pooled features."""

    config_class = SimCLRConfig
