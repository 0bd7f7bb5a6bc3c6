"""Momentum teachers."""

import copy
from collections.abc import Iterable

import torch
from torch import nn


class MomentumTeacher(nn.Module):
    """Copies of some modules of the student, that follow it as exponential moving averages and have no gradient.

    Only parameters follow the average. Running statistics of BatchNorm are the teacher's own.

    Args:
        students: the student's modules by name; the copies have the same names.
    """

    def __init__(self, **students: nn.Module):
        super().__init__()
        for name, module in students.items():
            self.add_module(name, copy.deepcopy(module))
        self.requires_grad_(False)

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        """`teacher = momentum * teacher + (1 - momentum) * student`; 0 copies, buffers too.

        Args:
            student: the model that holds the modules under the same names; with adapters of PEFT in them, the teacher
                follows the weights that these make.

        Raises:
            ValueError: the teacher has adapters of its own.
        """
        if momentum == 0.0:
            for name, module in self.named_children():
                module.load_state_dict(getattr(student, name).state_dict())
            return
        own, others = zip(*self._pairs_with(student), strict=True)
        torch._foreach_lerp_(own, others, 1.0 - momentum)

    def _pairs_with(self, student: nn.Module) -> Iterable[tuple[nn.Parameter, torch.Tensor]]:
        """Each parameter of the teacher, and what it follows."""
        for name, module in self.named_children():
            source = getattr(student, name)
            plain = dict(source.named_parameters())
            for key, parameter in module.named_parameters():
                # An adapted layer has its parameters under another name, `base_layer`.
                is_plain = key in plain and "base_layer" not in key
                yield parameter, plain[key] if is_plain else _adapted_parameter(source, key)


def _adapted_parameter(module: nn.Module, name: str) -> torch.Tensor:
    """A parameter of a module by its name, with what adapters of PEFT add to it."""
    owner_name, _, last = name.rpartition(".")
    if owner_name.endswith("base_layer"):
        raise ValueError(
            "the teacher has adapters of its own, which would not follow the student: give PEFT's configuration "
            r"exclude_modules=r'teacher\..*'"
        )
    owner = module.get_submodule(owner_name)
    if not hasattr(owner, "base_layer"):
        return getattr(owner, last)
    value = getattr(owner.base_layer, last)
    if last == "weight" and not owner.merged:
        for adapter in owner.active_adapters:
            value = value + owner.get_delta_weight(adapter)
    return value
