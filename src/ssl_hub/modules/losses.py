"""Losses that several algorithms share. All of them compute in float32, under autocast too."""

import functools

import torch
import torch.nn.functional as F

from ..distributed import num_processes, sum_


def to_float32(value):
    """A tensor of half precision as float32; anything else as it is, double precision too."""
    return value.float() if getattr(value, "dtype", None) in (torch.float16, torch.bfloat16) else value


def in_float32(function):
    """Runs a function of tensors in float32 at least: half precision is too coarse for similarities that a temperature
    divides."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        args = [to_float32(arg) for arg in args]
        with torch.autocast(args[0].device.type, enabled=False):
            return function(*args, **kwargs)

    return wrapper


@in_float32
def normalize(vectors: torch.Tensor) -> torch.Tensor:
    """Unit vectors along dimension 1."""
    return F.normalize(vectors, dim=1)


@in_float32
def contrastive_loss(positive: torch.Tensor, negative: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE (arXiv 1807.03748): cross entropy of picking the positive among the negatives.

    Args:
        positive: similarities `(N, 1)`.
        negative: similarities `(N, K)`.
    """
    logits = torch.cat([positive, negative], dim=1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


@in_float32
def queue_contrast(query: torch.Tensor, key: torch.Tensor, queue: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE of unit queries with their keys against the keys `(K, D)` of a queue.

    Args:
        query, key: `(B, D)`, or `(B, D, L)` with L positions, each a query of its own.
    """
    positive = (query * key).sum(dim=1).flatten()[:, None]
    vectors = query if query.ndim == 2 else query.transpose(1, 2).flatten(0, 1)
    return contrastive_loss(positive, vectors @ queue.T, temperature)


@in_float32
def classification_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The cross entropy of logits `(N, C)` with labels `(N,)`, and the accuracy, which has no gradient."""
    return F.cross_entropy(logits, labels), (logits.argmax(dim=1) == labels).to(logits.dtype).mean()


@in_float32
def cosine_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The negative mean cosine similarity of rows; no gradient goes into the target."""
    return -(F.normalize(prediction, dim=1) * F.normalize(target.detach(), dim=1)).sum(dim=1).mean()


@in_float32
def weighted_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor, weighted_mean: bool
) -> torch.Tensor:
    """Cross entropy whose rows weigh as much as their class.

    Args:
        logits: `(B, K)`.
        labels: `(B,)`; rows with label -1 have no weight.
        class_weights: `(K,)`.
        weighted_mean: whether to divide by the rows' weights, over all processes, as torch does; else by their number.
    """
    known, labels = labels >= 0, labels.clamp(min=0)
    weights = class_weights[labels] * known
    losses = F.cross_entropy(logits, labels, reduction="none") * weights
    if not weighted_mean:
        return losses.mean()
    return losses.sum() * num_processes() / sum_(weights.sum()).clamp(min=1e-30)


def reconstruction_loss(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None, *, power: int, eps: float = 0.0
) -> torch.Tensor:
    """The mean absolute (`power` 1) or squared (2) error, of what a mask selects if there is one.

    Args:
        prediction, target: patches `(B, L, D)`, or images `(B, C, H, W)`.
        mask: `(B, L, 1)`, or `(B, 1, H, W)`; 1 (or `True`) where an error counts.
        eps: added to the sum of the mask, which may then be empty.
    """
    error = (prediction - target).abs() if power == 1 else (prediction - target).square()
    if mask is None:
        return error.mean()
    errors_per_entry = error.numel() // mask.numel()
    return (error * mask).sum() / (mask.sum() + eps) / errors_per_entry


@in_float32
def target_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross entropy of logits `(..., size)` with tokens `(...)`, or mean squared error with vectors `(..., size)`."""
    if target.is_floating_point():
        return F.mse_loss(prediction, target)
    return F.cross_entropy(prediction.flatten(0, -2), target.flatten())
