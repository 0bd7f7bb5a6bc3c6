"""Loading what others have saved, and whether it holds numbers at all."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .printing import printable, printable_lines

if TYPE_CHECKING:
    import torch


def load_pretrained(auto_class: Any, name_or_path: str | Path, **options) -> Any:
    """`auto_class.from_pretrained(name_or_path, **options)`, with errors of one sentence that name the model.

    Args:
        auto_class: an Auto class of transformers, or a model's own.

    Raises:
        OSError: there is no such folder, or no such model on the Hub.
        ValueError: what is there is damaged, or no model that this class loads.
    """
    name = str(name_or_path)
    if not Path(name).exists():
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise FileNotFoundError(f"there is no model folder {printable(name)}") from error
    try:
        return auto_class.from_pretrained(name, **options)
    # A folder that other code wrote, or that was cut off, makes transformers raise nearly anything.
    except Exception as error:
        lines = printable_lines(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0] if len(lines) == 1 or not lines[0].endswith(":") else f"{lines[0]} {lines[1].strip()}"
        if isinstance(error, pickle.UnpicklingError):
            reason = "its weights hold Python objects besides tensors, which ssl_hub never unpickles"
        elif "ignore_mismatched_sizes" in reason:
            reason = "its weights have other shapes than its config.json says"
        error_class = OSError if isinstance(error, OSError) else ValueError
        raise error_class(f"the model {printable(name)} cannot be loaded: {reason}") from error


def find_non_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of the floating and complex tensors that hold NaN or infinity."""
    # Tensors of a model whose weights are offloaded are on the meta device and have no values.
    checked = {n: t for n, t in tensors.items() if (t.is_floating_point() or t.is_complex()) and not t.is_meta}
    # A sum is not finite where a value is not, or where it overflows, and takes a tenth of the time.
    sums = {name: tensor.sum() for name, tensor in checked.items()}
    return [name for name, total in sums.items() if not total.isfinite() and not checked[name].isfinite().all()]


def check_finite(tensors: Mapping[str, torch.Tensor], what: str) -> None:
    """Raises `ValueError` if a floating tensor, a running statistic for one, holds NaN or infinity.

    Args:
        tensors: by name, a state dict for one.
        what: what holds them, for the error.
    """
    if bad := find_non_finite(tensors):
        raise ValueError(
            f"{what} holds NaN or infinity in {len(bad)} of {len(tensors)} tensors ({', '.join(bad[:3])}"
            f"{', ...' if len(bad) > 3 else ''}): it comes from a run that diverged, so take an earlier checkpoint"
        )
