"""Optimizer, and the schedules of learning rate and weight decay."""

import re
from collections.abc import Callable

import torch
from transformers import SchedulerType, get_scheduler

from ..lifecycle import ParameterRule, Progress, cosine_ramp
from ..modeling_utils import SSLModel
from ..modules.backbones import no_weight_decay_names
from .arguments import PretrainingArguments

# Those of transformers that need nothing but the number of steps; the others ask for a metric or for settings of theirs.
SCHEDULES = (
    *("linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial"),
    *("constant", "constant_with_warmup", "inverse_sqrt"),
)


def parameter_groups(model: SSLModel, args: PretrainingArguments, learning_rate: float) -> list[dict]:
    """Groups the trainable parameters by the settings that they share.

    Biases, norms, tokens and position tables have no weight decay, unless `decay_norm_and_bias` or a rule of the model
    says otherwise. Going by shape rather than by name is what makes this right for every backbone: norms and biases
    are the vectors.

    Returns:
        Groups for a torch optimizer. Beside its settings a group has `constant_lr` and `frozen_epochs`, see
        [`ParameterRule`]. The group whose learning rate is logged comes first.

    Raises:
        ValueError: a rule of the model matches no parameter.
    """
    rules = model.parameter_rules
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for rule in rules:
        if not any(re.search(rule.pattern, name) for name in names):
            raise ValueError(
                f"the parameter rule {rule.pattern!r} of {type(model).__name__} matches no trainable parameter; their "
                f"names are {', '.join(names[:3])}, ..., {', '.join(names[-3:])}"
            )
    free_names = {f"backbone.{name}" for name in no_weight_decay_names(model.backbone)}
    groups: dict[tuple, dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rule = next((rule for rule in rules if re.search(rule.pattern, name)), ParameterRule(""))
        is_free = (
            parameter.ndim <= 1 or name in free_names or name.endswith("_token")
        ) and not args.decay_norm_and_bias
        decay_scale = rule.weight_decay_scale if rule.weight_decay_scale is not None else float(not is_free)
        settings = {
            "lr": learning_rate * rule.lr_scale * (args.norm_and_bias_lr_scale if is_free else 1.0),
            "weight_decay": args.weight_decay * decay_scale,
            "constant_lr": rule.constant_lr,
            "frozen_epochs": rule.frozen_epochs,
        }
        if args.optim == "lars":
            settings["always_adapt"] = decay_scale != 0
        if rule.momentum is not None and args.optim == "adamw":
            settings["betas"] = (rule.momentum, args.adam_beta2)
        elif rule.momentum is not None:
            settings["momentum"] = rule.momentum
        key = (rule.constant_lr, is_free, *settings.values())
        groups.setdefault(key, {"params": [], **settings})["params"].append(parameter)
    return [groups[key] for key in sorted(groups, key=lambda key: key[:2])]


def build_optimizer(model: SSLModel, args: PretrainingArguments, global_batch_size: int) -> torch.optim.Optimizer:
    """AdamW or SGD of torch, or LARS of timm (arXiv 1708.03888).

    `learning_rate = base_learning_rate * global_batch_size / 256` unless it is given. LARS adapts the learning rate of
    parameters that weight decay is for, which may be 0.
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


def describe_groups(optimizer: torch.optim.Optimizer) -> list[str]:
    """A line a parameter group: how many parameters it has, and its settings."""
    lines = []
    for group in optimizer.param_groups:
        count = sum(parameter.numel() for parameter in group["params"])
        line = f"{count:,} parameters in {len(group['params'])} tensors: learning rate {group['lr']:.3g}"
        line += " (constant)" if group["constant_lr"] else ""
        line += f", weight decay {group['weight_decay']:.3g}"
        line += f", momentum {group['momentum']:.3g}" if "momentum" in group else ""
        line += f", frozen for {group['frozen_epochs']:g} epochs" if group["frozen_epochs"] else ""
        lines.append(line)
    return lines


class Schedule:
    """Sets learning rate and weight decay of an optimizer as functions of [`Progress`]; it has no state to save.

    A schedule of transformers or milestones, with linear warm-up from 0, gives the factor of every group's learning
    rate. The weight decay goes to `weight_decay_end` along half a cosine, if that is given.

    Args:
        optimizer: as `build_optimizer` made it, whose settings are the peaks.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        args: PretrainingArguments,
        total_steps: int,
        steps_per_epoch: int | None,
    ):
        self.optimizer = optimizer
        self.peaks = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        self.factor = _learning_rate_factor(args, total_steps, steps_per_epoch)
        self.weight_decay_ratio = None
        if args.weight_decay_end is not None:
            self.weight_decay_ratio = args.weight_decay_end / args.weight_decay

    def apply(self, progress: Progress) -> None:
        """Sets the groups to what they are in the step that comes after `progress`."""
        factor = self.factor(progress.step)
        decay = 1.0 if self.weight_decay_ratio is None else cosine_ramp(1.0, self.weight_decay_ratio, progress.share)
        for group, (learning_rate, weight_decay) in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = learning_rate if group["constant_lr"] else learning_rate * factor
            group["weight_decay"] = weight_decay * decay


def drop_frozen_gradients(optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Forgets the gradients of groups that are still frozen: the optimizer passes them over, its state stays empty."""
    for group in optimizer.param_groups:
        if group["frozen_epochs"] and progress.epoch < group["frozen_epochs"]:
            for parameter in group["params"]:
                parameter.grad = None


def count_warmup_steps(args: PretrainingArguments, steps_per_epoch: int | None) -> int:
    """The steps of warm-up; raises `ValueError` for epochs of a stream, None steps long."""
    if steps_per_epoch is None and (args.lr_milestones or (args.warmup_epochs and args.warmup_steps is None)):
        raise ValueError(
            "a streamed dataset has no known epoch: give --warmup_steps instead of warmup_epochs, and no lr_milestones"
        )
    if args.warmup_steps is not None:
        return args.warmup_steps
    return round(args.warmup_epochs * (steps_per_epoch or 0))


def _learning_rate_factor(
    args: PretrainingArguments, total_steps: int, steps_per_epoch: int | None
) -> Callable[[int], float]:
    """The factor of the learning rate in the step after so many."""
    warmup_steps = count_warmup_steps(args, steps_per_epoch)
    if args.lr_milestones:
        milestones = [float(epoch) * steps_per_epoch for epoch in args.lr_milestones.split(",")]

        def factor(step: int) -> float:
            warmup = min(1.0, step / warmup_steps) if warmup_steps else 1.0
            return warmup * args.lr_milestone_factor ** sum(step >= milestone for milestone in milestones)

        return factor
    kind = SchedulerType(args.lr_scheduler_type).value
    if kind not in SCHEDULES:
        raise ValueError(f"--lr_scheduler_type must be one of {', '.join(SCHEDULES)}; got {kind!r}")
    settings = {"min_lr_rate": args.min_lr_rate} if kind == "cosine_with_min_lr" else {}
    # transformers has its schedules in a scheduler; what is wanted of it is the function.
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = get_scheduler(kind, optimizer, warmup_steps, total_steps, scheduler_specific_kwargs=settings)
    return scheduler.lr_lambdas[0]
