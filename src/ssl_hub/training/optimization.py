"""Optimizer and schedule."""

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import SchedulerType, get_scheduler

from ..modeling_utils import SSLModel
from .arguments import PretrainingArguments

# Those of transformers that need nothing but the number of steps; the others ask for a metric or for settings of theirs.
SCHEDULES = (
    *("linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial"),
    *("constant", "constant_with_warmup", "inverse_sqrt"),
)


def parameter_groups(model: SSLModel, args: PretrainingArguments, learning_rate: float) -> list[dict]:
    """Splits the trainable parameters by weight decay and by whether the schedule changes their learning rate.

    Biases, norms and the model's `no_weight_decay` have no weight decay, unless `decay_norm_and_bias`. Going by shape
    rather than by name is what makes this right for every backbone: norms and biases are the vectors.
    """
    groups: dict[tuple[bool, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_free = parameter.ndim <= 1 or name.rpartition(".")[2] in model.no_weight_decay
        is_free = is_free and not args.decay_norm_and_bias
        is_constant = name.startswith(model.constant_learning_rate)
        group = {
            "params": [],
            "lr": learning_rate * (args.norm_and_bias_lr_scale if is_free else 1.0),
            "weight_decay": 0.0 if is_free else args.weight_decay,
            "constant_learning_rate": is_constant,
        }
        groups.setdefault((is_constant, is_free), group)["params"].append(parameter)
    # The group whose learning rate is logged comes first.
    return [groups[key] for key in sorted(groups)]


def build_optimizer(model: SSLModel, args: PretrainingArguments, global_batch_size: int) -> torch.optim.Optimizer:
    """AdamW or SGD of torch, or LARS of timm (arXiv 1708.03888).

    `learning_rate = base_learning_rate * global_batch_size / 256` unless it is given. LARS adapts the learning rate of
    parameters with weight decay.
    """
    learning_rate = args.learning_rate
    if learning_rate is None:
        learning_rate = args.base_learning_rate * global_batch_size / 256
    groups = parameter_groups(model, args, learning_rate)
    if args.optim == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=args.sgd_momentum, fused=True)
    if args.optim == "lars":
        from timm.optim import Lars  # timm takes a while to import

        return Lars(groups, lr=learning_rate, momentum=args.sgd_momentum, trust_coeff=0.001)
    betas = (args.adam_beta1, args.adam_beta2)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=args.adam_epsilon, fused=True)


def build_scheduler(
    optimizer: torch.optim.Optimizer, args: PretrainingArguments, total_steps: int, steps_per_epoch: int | None
) -> LRScheduler:
    """A schedule of transformers over `total_steps` optimizer steps, or milestones; with linear warm-up from 0."""
    warmup_steps = args.warmup_steps
    if steps_per_epoch is None and (args.lr_milestones or (args.warmup_epochs and warmup_steps is None)):
        raise ValueError(
            "a streamed dataset has no known epoch: give --warmup_steps instead of warmup_epochs, and no lr_milestones"
        )
    if warmup_steps is None:
        warmup_steps = round(args.warmup_epochs * (steps_per_epoch or 0))
    if args.lr_milestones:
        milestones = [float(epoch) * steps_per_epoch for epoch in args.lr_milestones.split(",")]

        def factor(step):
            warmup = min(1.0, step / warmup_steps) if warmup_steps else 1.0
            return warmup * 0.1 ** sum(step >= milestone for milestone in milestones)

        scheduler = LambdaLR(optimizer, factor)
    else:
        kind = SchedulerType(args.lr_scheduler_type).value
        if kind not in SCHEDULES:
            raise ValueError(f"--lr_scheduler_type must be one of {', '.join(SCHEDULES)}; got {kind!r}")
        settings = {"min_lr_rate": args.min_lr_rate} if kind == "cosine_with_min_lr" else {}
        scheduler = get_scheduler(kind, optimizer, warmup_steps, total_steps, scheduler_specific_kwargs=settings)
    for index, group in enumerate(optimizer.param_groups):
        if group["constant_learning_rate"]:
            scheduler.lr_lambdas[index] = _constant
            group["lr"] = group["initial_lr"]
    return scheduler


def _constant(step: int) -> float:
    return 1.0
