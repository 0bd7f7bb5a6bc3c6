"""Layer-wise learning rates, and the optimizer and schedule of the published protocols."""

import re
from collections.abc import Sequence

import torch
from torch import nn

from ..modules.backbones import no_weight_decay_names

# Where the blocks of a backbone are: `layers.3`, `encoder.layers.1.blocks.0`, `stages.2.layers.5`, timm's `layer3.1`.
_BLOCK = re.compile(r"(?:^|\.)(?:layers?|blocks|stages)\.?(\d+)(?:\.(?:(?:layers?|blocks)\.)?(\d+)(?=\.|$))?")


def layer_ids(names: Sequence[str]) -> tuple[list[int], int]:
    """The layer that each parameter of a model belongs to, for layer-wise learning rates (arXiv 2106.08254).

    0 are the patch embedding, tokens and positions; the blocks follow; what reduces the map between two stages belongs
    to the last block before it; the highest is the rest: the final norm and the classifier.

    Args:
        names: of the parameters, in the model's order.

    Returns:
        The layers, and how many there are: one a block and two.

    Raises:
        ValueError: the names show no blocks.
    """
    found = [_BLOCK.search(name) for name in names]
    # With stages, a block is the second number; what has no second one lies between the stages.
    has_stages = any(match and match[2] is not None for match in found)
    blocks: dict[tuple, int] = {}
    ids: list[int | None] = []
    for name, match in zip(names, found, strict=True):
        if match and (match[2] is not None or not has_stages):
            ids.append(blocks.setdefault(match.groups(), len(blocks) + 1))
        elif match:
            ids.append(len(blocks))
        else:
            is_stem = not blocks and "relative_position" not in name and not name.startswith("classifier")
            ids.append(0 if is_stem else None)
    if not blocks:
        raise ValueError(
            f"layer-wise learning rates need a backbone with blocks, and the names of its parameters show none "
            f"({', '.join(names[:3])}, ...): leave layer_decay out"
        )
    last = len(blocks) + 1
    return [last if each is None else each for each in ids], last + 1


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    *,
    layer_decay: float | None = None,
    head_lr_scale: float = 1.0,
    decay_norm_and_bias: bool = False,
) -> list[dict]:
    """Groups the trainable parameters of an image classifier by the settings that they share.

    Args:
        layer_decay: the learning rate of a layer is that of the one above times this, see [`layer_ids`].
        head_lr_scale: of the classifier's learning rate.
        decay_norm_and_bias: whether biases, norms, tokens and position tables have weight decay.

    Returns:
        Groups for a torch optimizer; the first one has the highest learning rate, which is what a log shows.
    """
    names = [name for name, _ in model.named_parameters()]
    scales = [1.0] * len(names)
    if layer_decay is not None:
        ids, num_layers = layer_ids(names)
        scales = [layer_decay ** (num_layers - 1 - each) for each in ids]
    free_names = {f"backbone.{name}" for name in no_weight_decay_names(model.backbone)}
    groups: dict[tuple, dict] = {}
    for (name, parameter), scale in zip(model.named_parameters(), scales, strict=True):
        if not parameter.requires_grad:
            continue
        is_free = (parameter.ndim <= 1 or name in free_names or name.endswith("_token")) and not decay_norm_and_bias
        scale *= head_lr_scale if name.startswith("classifier.") else 1.0
        settings = {"lr": learning_rate * scale, "weight_decay": 0.0 if is_free else weight_decay}
        groups.setdefault(tuple(settings.values()), {"params": [], **settings})["params"].append(parameter)
    return [groups[key] for key in sorted(groups, reverse=True)]


def build_optimizer(kind: str, groups: list[dict], learning_rate: float, momentum: float, nesterov: bool):
    """SGD of torch, or LARS of timm (arXiv 1708.03888), which adapts the learning rate of what has weight decay or of all.

    Args:
        kind: `"sgd"` or `"lars"`.
    """
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov)
    from timm.optim import Lars

    # The linear evaluations have no weight decay and adapt all the same, biases too.
    return Lars(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov, trust_coeff=0.001, always_adapt=True)


def milestone_schedule(optimizer: torch.optim.Optimizer, milestones: Sequence[int], factor: float, warmup_steps: int):
    """Multiplies the learning rates by `factor` at each milestone, counted in steps, after a linear warm-up."""

    def scale(step: int) -> float:
        warmup = min(1.0, step / warmup_steps) if warmup_steps else 1.0
        return warmup * factor ** sum(step >= milestone for milestone in milestones)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
