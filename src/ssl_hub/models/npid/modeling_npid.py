"""NPID: Unsupervised Feature Learning via Non-Parametric Instance Discrimination (arXiv 1805.01978).

Every image is a class of its own: its projection has to find the image's row in a memory among rows of other images.
"""

import logging
from collections.abc import Iterator

import torch
from torch import nn
from transformers import initialization as init

from ...distributed import check_batch_for_batchnorm, process_index
from ...modeling_outputs import InstanceOutput, SSLLossOutput
from ...modeling_utils import SSLForImageClassification, SSLModel
from ...modules.backbones import backbone_hidden_size, build_backbone
from ...modules.losses import in_float32, normalize
from ...modules.memories import InstanceMemory
from .configuration_npid import NPIDConfig

logger = logging.getLogger(__name__)

# Similarities with the memory that are held at once: 128 MiB of float32.
MAX_SIMILARITIES = 2**25


def parts_of_batch(batch_size: int, memory_size: int) -> Iterator[slice]:
    """Parts whose similarities with the whole memory are at most `MAX_SIMILARITIES`; single images at the least."""
    size = max(1, MAX_SIMILARITIES // memory_size)
    return (slice(start, start + size) for start in range(0, batch_size, size))


class _InstanceContrast(torch.autograd.Function):
    """The gradient is computed with the loss: by the backward pass the memory will have changed."""

    @staticmethod
    def forward(ctx, projections, memory, indices, negatives, temperature):
        losses, correct = torch.empty_like(projections[:, 0]), torch.empty_like(projections[:, 0])
        gradient = torch.empty_like(projections)
        for part in parts_of_batch(len(projections), len(memory)):
            rows = torch.cat([indices[part, None], negatives[part]], dim=1)
            similarities = projections[part] @ memory.T
            log_probabilities = (similarities.gather(1, rows) / temperature).log_softmax(dim=1)
            losses[part] = -log_probabilities[:, 0]
            confused = (log_probabilities >= log_probabilities[:, :1]) & (rows != rows[:, :1])
            correct[part] = 1 - confused.any(dim=1).to(correct.dtype)
            logit_gradient = log_probabilities.exp_()
            logit_gradient[:, 0] -= 1
            gradient[part] = similarities.zero_().scatter_add_(1, rows, logit_gradient) @ memory
        ctx.save_for_backward(gradient / (temperature * len(projections)))
        accuracy = correct.mean()
        ctx.mark_non_differentiable(accuracy)
        return losses.mean(), accuracy

    @staticmethod
    def backward(ctx, grad_loss, grad_accuracy):
        (gradient,) = ctx.saved_tensors
        return grad_loss * gradient, None, None, None, None


@in_float32
def instance_contrast(
    projections: torch.Tensor, memory: torch.Tensor, indices: torch.Tensor, negatives: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of picking an image's own row of the memory among its negatives.

    Args:
        projections: unit vectors `(B, D)`.
        memory: unit vectors `(N, D)`, which get no gradient.
        indices: the images' own rows `(B,)`.
        negatives: the rows `(B, K)` of their negatives.

    Returns:
        The loss, and without a gradient the share of images that are nearer to their own row than to any other.
    """
    return _InstanceContrast.apply(projections, memory, indices, negatives, temperature)


@in_float32
def nearest_rows(projections: torch.Tensor, memory: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities and indices `(B, count)` of the rows of the memory that are nearest, the nearest first."""
    parts = parts_of_batch(len(projections), len(memory))
    nearest = [(projections[part] @ memory.T).topk(count, dim=1) for part in parts]
    return torch.cat([part.values for part in nearest]), torch.cat([part.indices for part in nearest])


class NPIDModel(SSLModel):
    """NPID (arXiv 1805.01978): `backbone`, `neck` a linear layer, `memory` a vector for every image of the dataset."""

    config_class = NPIDConfig
    training_state = ("memory.",)

    def __init__(self, config: NPIDConfig):
        super().__init__(config)
        size = config.projection_size
        self.backbone = build_backbone(config.backbone_config)
        self.neck = nn.Linear(backbone_hidden_size(self.backbone), size)
        self.memory = InstanceMemory(config.memory_size, size, config.memory_momentum)
        self.post_init()

    def begin_run(self, num_samples: int | None) -> None:
        """Gives every image of the dataset a row of the memory; one of that size stays as it is."""
        if num_samples is None:
            raise ValueError(
                "NPID keeps a vector for every image, and a streamed dataset does not say how many it has: load it "
                "without streaming, or use an algorithm with a queue instead, such as MoCo"
            )
        if self.config.ensure_negatives and num_samples < 2:
            raise ValueError("ensure_negatives needs a dataset of at least two images, got one")
        before = len(self.memory.features) if self.memory.features.any() else 0
        if num_samples == before:
            return
        if before > 0 and process_index() == 0:
            logger.warning(
                "the model's memory is of a dataset of %d images, this one has %d: it starts anew", before, num_samples
            )
        self._start_memory(num_samples)

    def _start_memory(self, num_samples: int) -> None:
        self.memory.start(num_samples)
        self.config.memory_size = num_samples

    def loss(self, pixel_values: torch.Tensor, *, indices: torch.Tensor) -> SSLLossOutput:
        """`mode="loss"`: the cross entropy of the images' own rows, which then move towards them (in training mode).

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): One view of each.
            indices (`torch.LongTensor` of shape `(batch_size,)`): The images' rows in the dataset.
        """
        self.check_pixel_values(pixel_values)
        self.memory.check_indices(indices, len(pixel_values))
        check_batch_for_batchnorm(self, pixel_values)
        projections = self._project(pixel_values)
        negatives = self.draw_negatives(indices)
        loss, accuracy = instance_contrast(
            projections, self.memory.features, indices, negatives, self.config.temperature
        )
        if self.training:
            self.memory.update(indices, projections)
        return SSLLossOutput(loss=loss, losses={"contrastive": loss.detach(), "accuracy": accuracy})

    def _project(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return normalize(self.neck(self.extract_features(pixel_values).pooler_output))

    def draw_negatives(self, indices: torch.Tensor) -> torch.Tensor:
        """Draws rows of the memory `(batch_size, num_negatives)`, all alike and with replacement.

        Args:
            indices: the images' own rows `(batch_size,)`, which are left out with `ensure_negatives`.
        """
        others = len(self.memory.features) - self.config.ensure_negatives
        rows = torch.randint(others, (len(indices), self.config.num_negatives), device=indices.device)
        if self.config.ensure_negatives:
            rows += rows >= indices[:, None]
        return rows

    @torch.no_grad()
    def predict(self, pixel_values: torch.Tensor, *, num_nearest: int = 5) -> InstanceOutput:
        """`mode="predict"`: unit projections of images, and the images of the training dataset that are nearest.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Images.
            num_nearest (`int`, *optional*, defaults to 5): How many of the nearest; all if the memory has fewer.
        """
        projections, memory = self._project(pixel_values), self.memory.features
        if len(memory) == 0:
            return InstanceOutput(projection=projections)
        similarities, indices = nearest_rows(projections, memory, min(num_nearest, len(memory)))
        return InstanceOutput(projection=projections, nearest_indices=indices, similarities=similarities)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, InstanceMemory):
            init.zeros_(module.features)

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if not model.memory.features.any():  # left out of what is shared
            model._start_memory(0)
        return (model, info) if output_loading_info else model


class NPIDForImageClassification(SSLForImageClassification):
    """NPID's backbone with a linear classifier on its pooled features."""

    config_class = NPIDConfig
