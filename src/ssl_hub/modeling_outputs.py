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
class PatchPredictionOutput(ReconstructionOutput):
    """Returned by `mode="predict"` of the masked-image models whose targets come from a generator.

    Args:
        reconstruction, masked_image (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
            The image with a picture of the prediction in place of the removed patches, and with these patches grey;
            None where the target cannot be shown, such as tokens.
        prediction, target (`torch.LongTensor` of shape `(batch_size, num_masked)` or `torch.FloatTensor` of shape `(batch_size, num_masked, size)`):
            Tokens, or vectors, of the removed patches, row by row.
        accuracy (`torch.FloatTensor` of shape `(batch_size,)`):
            The share of an image's tokens that are predicted right; None for vectors.
    """

    prediction: torch.Tensor | None = None
    target: torch.Tensor | None = None
    accuracy: torch.FloatTensor | None = None


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


@dataclass
class RotationOutput(ModelOutput):
    """Returned by `mode="predict"` of RotationPred.

    Args:
        angle (`torch.LongTensor` of shape `(batch_size,)`):
            By how many degrees, clockwise, each image has probably been turned: 0, 90, 180 or 270.
        probabilities (`torch.FloatTensor` of shape `(batch_size, 4)`): Of these four angles, in this order.
    """

    angle: torch.LongTensor | None = None
    probabilities: torch.FloatTensor | None = None


@dataclass
class InstanceOutput(ModelOutput):
    """Returned by `mode="predict"` of NPID. Without a memory, such as in a shared model, there is only the projection.

    Args:
        projection (`torch.FloatTensor` of shape `(batch_size, projection_size)`):
            Unit vectors; the dot product of two is their cosine similarity.
        nearest_indices (`torch.LongTensor` of shape `(batch_size, num_nearest)`):
            The images of the training dataset whose vectors in the memory are nearest, the nearest first.
        similarities (`torch.FloatTensor` of shape `(batch_size, num_nearest)`): Their cosine similarities.
    """

    projection: torch.FloatTensor | None = None
    nearest_indices: torch.LongTensor | None = None
    similarities: torch.FloatTensor | None = None


@dataclass
class RelativeLocationOutput(ModelOutput):
    """Returned by `mode="predict"` of RelativeLoc, for the eight patches around the centre, column by column.

    The directions have the same order: 0 top left, 1 left, 2 bottom left, 3 above, 4 below, 5 top right, 6 right,
    7 bottom right. So a model that is right about all patches returns 0, 1, ..., 7.

    Args:
        direction (`torch.LongTensor` of shape `(batch_size, 8)`): In which direction of the centre a patch probably is.
        probabilities (`torch.FloatTensor` of shape `(batch_size, 8, 8)`): Of the directions (last dimension).
    """

    direction: torch.LongTensor | None = None
    probabilities: torch.FloatTensor | None = None
