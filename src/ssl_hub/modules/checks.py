"""Checks of what tensors hold."""

from collections.abc import Callable

import torch


def check_values(is_right: torch.Tensor, expected: str, found: Callable[[], object]) -> None:
    """Raises `ValueError` unless a tensor `()` on the CPU says that values are right.

    A GPU is not asked, which would make the host wait for it in every step: it ends the run itself, as a compiled graph
    does, with the first half of the sentence.

    Args:
        expected: the first half of the sentence, what is allowed.
        found: what was given.
    """
    if torch.compiler.is_compiling() or is_right.device.type != "cpu":
        torch._assert_async(is_right, expected)
    elif not is_right:
        raise ValueError(f"{expected}; got {found()}")
