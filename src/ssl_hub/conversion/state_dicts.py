"""What the sources of foreign checkpoints share: rename rules, and reading and filling in strictly."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..modeling_utils import SSLModel

# A rule is a regular expression and its replacement, as re.sub takes them. Every rule is applied to every key, in order.
Rules = Sequence[tuple[str, str | Callable[[re.Match], str]]]

# torchvision's names, in any module that is a `backbone` already.
RESNET_RULES = [
    (r"\bbackbone\.conv1\.", "backbone.embedder.embedder.convolution."),
    (r"\bbackbone\.bn1\.", "backbone.embedder.embedder.normalization."),
    (
        r"\bbackbone\.layer(\d)\.(\d+)\.conv(\d)\.",
        lambda m: f"backbone.encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.layer.{int(m[3]) - 1}.convolution.",
    ),
    (
        r"\bbackbone\.layer(\d)\.(\d+)\.bn(\d)\.",
        lambda m: f"backbone.encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.layer.{int(m[3]) - 1}.normalization.",
    ),
    (
        r"\bbackbone\.layer(\d)\.(\d+)\.downsample\.([01])\.",
        lambda m: (
            f"backbone.encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.shortcut."
            + ("convolution." if m[3] == "0" else "normalization.")
        ),
    ),
]


def rename_keys(state_dict: dict[str, torch.Tensor], rules: Rules) -> dict[str, torch.Tensor]:
    """Applies the rules to the keys, then splits every fused `attention.qkv` into `q_proj`, `k_proj` and `v_proj`."""
    renamed = {}
    for key, tensor in state_dict.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        if ".attention.qkv." in key:
            for name, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[key.replace(".qkv.", f".{name}_proj.")] = part
        else:
            renamed[key] = tensor
    return renamed


def turn_queues(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gives MoCo's and DenseCL's queues, once renamed, the shapes of ours: elsewhere a vector is a column."""
    turned = dict(state_dict)
    for key, tensor in state_dict.items():
        if re.fullmatch(r"memory\.(\w+_queue\.)?vectors", key):
            turned[key] = tensor.T
        elif re.fullmatch(r"memory\.(\w+_queue\.)?pointer", key):
            turned[key] = tensor.reshape(())
    return turned


def read_checkpoint(path: str | Path) -> dict:
    """Reads a `.safetensors` file, or a `.pth` file without unpickling anything but tensors and plain containers."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read safely: it is damaged, or it holds Python objects besides its tensors, which "
            "ssl_hub never unpickles. Save the tensors alone from the code that made it, with "
            "torch.save(checkpoint['model'], path) or safetensors."
        ) from error


def load_strictly(model: SSLModel, state_dict: dict[str, torch.Tensor], new: Sequence[str] = ()) -> None:
    """Loads a converted state dict; every tensor must find its place and every place its tensor.

    Args:
        model: what to fill.
        state_dict: under the model's own names.
        new: prefixes of what the source does not hold and the model's own initialisation may stand for.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state_dict and not key.startswith(tuple(new))]
    unexpected = [key for key in state_dict if key not in own]
    shapes = [
        f"{key}: {tuple(state_dict[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state_dict and state_dict[key].shape != own[key].shape
    ]
    problems = [
        f"{what} ({len(keys)}): {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
        for what, keys in (("missing", missing), ("not known", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise ValueError(
            f"the checkpoint does not fit this {type(model).__name__}; after renaming, its tensors are "
            f"{'; '.join(problems)}. Is it of the same architecture, and was it saved by the source that you named?"
        )
    model.load_state_dict(state_dict, strict=not new)
