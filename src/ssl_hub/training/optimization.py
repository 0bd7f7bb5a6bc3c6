"""Optimizer and schedule."""

import torch
from transformers import SchedulerType, get_scheduler

from ..modeling_utils import SSLModel
from .arguments import PretrainingArguments

# Those of transformers that need nothing but the number of steps; the others ask for a metric or for settings of theirs.
SCHEDULES = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial"),
    *("constant", "constant_with_warmup", "inverse_sqrt"),
)


def parameter_groups(model: SSLModel, weight_decay: float) -> list[dict]:
    """Splits the trainable parameters: no weight decay for biases, norms and the model's `no_weight_decay`.

    Going by shape rather than by name is what makes this right for every backbone: norms and biases are the vectors.
    """
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_free = parameter.ndim <= 1 or name.rpartition(".")[2] in model.no_weight_decay
            (free if is_free else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def build_optimizer(model: SSLModel, args: PretrainingArguments, global_batch_size: int) -> torch.optim.Optimizer:
    """AdamW; `learning_rate = base_learning_rate * global_batch_size / 256` unless it is given."""
    learning_rate = args.learning_rate
    if learning_rate is None:
        learning_rate = args.base_learning_rate * global_batch_size / 256
    return torch.optim.AdamW(
        parameter_groups(model, args.weight_decay),
        lr=learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        fused=True,
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer, args: PretrainingArguments, total_steps: int, steps_per_epoch: int | None
) -> torch.optim.lr_scheduler.LRScheduler:
    """A schedule of transformers over `total_steps` optimizer steps, with linear warm-up from 0."""
    kind = SchedulerType(args.lr_scheduler_type).value
    if kind not in SCHEDULES:
        raise ValueError(f"--lr_scheduler_type must be one of {', '.join(SCHEDULES)}; got {kind!r}")
    warmup_steps = args.warmup_steps
    if warmup_steps is None:
        if args.warmup_epochs and steps_per_epoch is None:
            raise ValueError("a streamed dataset has no known epoch: give --warmup_steps instead of warmup_epochs")
        warmup_steps = round(args.warmup_epochs * (steps_per_epoch or 0))
    return get_scheduler(kind, optimizer, warmup_steps, total_steps)
