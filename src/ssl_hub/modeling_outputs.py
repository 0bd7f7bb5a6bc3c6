"""What the three modes return (`mode="tensor"` returns transformers' `BaseModelOutputWithPooling`)."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class SSLLossOutput(ModelOutput):
    """Returned by `mode="loss"`.

    Args:
        loss (`torch.FloatTensor` of shape `()`): what is back-propagated.
        losses (`dict[str, torch.FloatTensor]`): its terms and whatever else is worth a line in the log, detached.
    """

    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None


@dataclass
class ReconstructionOutput(ModelOutput):
    """Returned by `mode="predict"` of the masked-image models. Pixels are un-normalised: an image lies in [0, 1].

    Args:
        reconstruction (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
            What the model predicts, visible patches included. A prediction may leave [0, 1].
        masked_image (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
            The image with its removed patches grey (0.5).
        mask (`torch.BoolTensor` of shape `(batch_size, num_patches)`):
            `True` where a patch was removed, patches row by row.
    """

    reconstruction: torch.FloatTensor | None = None
    masked_image: torch.FloatTensor | None = None
    mask: torch.BoolTensor | None = None


@dataclass
class PatchPredictionOutput(ModelOutput):
    """Returned by `mode="predict"` of the masked-image models that predict tokens or features.

    Args:
        prediction, target (`torch.LongTensor` of shape `(batch_size, num_masked)` or `torch.FloatTensor` of shape `(batch_size, num_masked, size)`):
            Tokens, or features, of the removed patches, row by row.
        accuracy (`torch.FloatTensor` of shape `(batch_size,)`):
            The share of an image's tokens that are predicted right; None for features.
        mask (`torch.BoolTensor` of shape `(batch_size, num_patches)`):
            `True` where a patch was removed, patches row by row.
    """

    prediction: torch.Tensor | None = None
    target: torch.Tensor | None = None
    accuracy: torch.FloatTensor | None = None
    mask: torch.BoolTensor | None = None


@dataclass
class ProjectionOutput(ModelOutput):
    """Returned by `mode="predict"` of the joint-embedding models.

    Args:
        projection (`torch.FloatTensor` of shape `(batch_size, projection_size)`):
            Unit vectors; the dot product of two is their cosine similarity.
    """

    projection: torch.FloatTensor | None = None
