"""Checkpoints of transformers' own masked-image models, `SwinForMaskedImageModeling` and `ViTForMaskedImageModeling`."""

from pathlib import Path

import torch
from transformers import AutoModelForMaskedImageModeling

from ..pretrained import load_pretrained
from ..printing import name_some
from .state_dicts import rename_keys

# by our model types
RULES = {"simmim": [(r"^(swin|vit)\.", "backbone."), (r"^decoder\.0\.", "neck.predict_pixels.")]}


def read_model(name_or_path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict of a model in a folder or on the Hub. transformers has to load it: its files of older versions,
    and those for older versions, have other names.

    Raises:
        OSError: there is no such model.
        ValueError: the model is damaged, no masked-image model, or lacks a part.
    """
    model, info = load_pretrained(AutoModelForMaskedImageModeling, name_or_path, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"{name_or_path} lacks {name_some(sorted(info['missing_keys']))} of a {type(model).__name__}")
    return model.state_dict()


def convert_state_dict(model_type: str, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the tensors of such a model to ssl_hub's names."""
    return rename_keys(state_dict, RULES[model_type])
