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
class ProjectionOutput(ModelOutput):
    """Returned by `mode="predict"` of the joint-embedding models.

    Args:
        projection (`torch.FloatTensor` of shape `(batch_size, projection_size)`):
            Unit vectors; the dot product of two is their cosine similarity.
    """

    projection: torch.FloatTensor | None = None


@dataclass
class ClusterOutput(ModelOutput):
    """Returned by `mode="predict"` of the algorithms that cluster images.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_clusters)`): of the classifier of clusters.
        cluster_ids (`torch.LongTensor` of shape `(batch_size,)`): the cluster with the largest logit.
        distances (`torch.FloatTensor` of shape `(batch_size,)`):
            Euclidean distance of the image's unit vector from the centroid of that cluster; without a meaning before the
            first clustering.
    """

    logits: torch.FloatTensor | None = None
    cluster_ids: torch.LongTensor | None = None
    distances: torch.FloatTensor | None = None
