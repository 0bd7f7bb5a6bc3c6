"""Reading state dicts that other code saved, and filling models with them strictly."""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..modeling_utils import SSLModel
from ..pretrained import check_finite
from ..printing import name_some, printable

_DAMAGED = "it is damaged, or it holds Python objects besides its tensors"


class StandIn(dict):
    """What an object of another library becomes when a file is read: it holds what was saved of it, and does nothing."""

    def __init__(self, *args):
        super().__init__()
        self.state = {}

    def __new__(cls, *args):
        return super().__new__(cls)

    def __setstate__(self, state):
        self.state = state


# What training code saves beside its tensors: arguments, paths, numbers of numpy, logs. No code of these classes runs. All
# else is refused.
_REPLACED = [
    "argparse.Namespace",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.WindowsPath",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.ndarray",
    "numpy.dtype",
    "addict.addict.Dict",
    "mmengine.config.config.ConfigDict",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "vissl.utils.hydra_config.AttrDict",
    # NPID's memory, a module that its authors save whole
    *(
        f"lib.{name}"
        for name in ("NCEAverage.NCEAverage", "LinearAverage.LinearAverage", "alias_multinomial.AliasMethod")
    ),
]


def read_checkpoint(path: str | Path) -> dict:
    """Maps a `.safetensors` or a `.pth` file into memory, without unpickling anything but tensors and plain containers.

    Objects of the classes that training code usually saves along become a [`StandIn`].

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: it is damaged, cannot be read safely, unpacks to more than its size, or holds no dict.
    """
    path = Path(path)
    if not path.is_file():
        hint = ", which is a folder: name the file in it" if path.is_dir() else ""
        raise FileNotFoundError(f"there is no checkpoint file {path}{hint}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is cut off or no safetensors file: fetch it again ({error})") from error
    _check_packed_size(path)
    stand_ins = [(StandIn, name) for name in _REPLACED]
    try:
        with torch.serialization.safe_globals(stand_ins):
            # Files of old versions of torch cannot be mapped.
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:
        found = re.search(r"GLOBAL (\S+) (was not an allowed global|whose module)", str(error))
        reason = f"it holds Python objects besides its tensors ({printable(found[1])})" if found else _DAMAGED
        raise ValueError(
            f"{path} cannot be read safely: {reason}, which ssl_hub never unpickles. Save the tensors alone from the code that made it, with "
            "torch.save(checkpoint['model'], path) or safetensors."
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f"{path} holds a {type(checkpoint).__name__}, and a checkpoint is a dict of tensors by name: save "
            "model.state_dict() from the code that made it"
        )
    return checkpoint


def _check_packed_size(path: Path) -> None:
    """`torch.save` does not compress: a file that unpacks to more than its size is there to fill the memory."""
    if not zipfile.is_zipfile(path):  # as files of old versions of torch
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes and would unpack to {unpacked:,}: torch.save does not compress, so "
            "another program has packed it; save it anew with torch.save, or unpack it first"
        )


# Under which name a file has its state dict, in the order in which they are looked for.
_WRAPPERS = ("state_dict", "model", "classy_state_dict", "base_model", "model_state_dict")


def unwrap(checkpoint: dict, path: str | Path) -> dict:
    """The state dict in what was read of a file; state dicts side by side, of several modules, become one.

    Raises:
        ValueError: there is none.
    """
    outermost = checkpoint
    while wrapper := next((name for name in _WRAPPERS if name in checkpoint), None):
        checkpoint = checkpoint[wrapper]
        if not isinstance(checkpoint, dict):
            return checkpoint
    modules = {
        f"{name}.{key}": value
        for name, module in outermost.items()
        if isinstance(module, StandIn) and isinstance(module.state, dict)
        for key, value in module.state.get("_buffers", {}).items()
    }
    if modules:  # that were saved whole
        return {**checkpoint, **modules}
    nested = {
        f"{name}.{key}": value
        for name, values in checkpoint.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if isinstance(value, torch.Tensor)
    }
    if nested:
        return nested
    tensors = [value for value in checkpoint.values() if isinstance(value, torch.Tensor)]
    if checkpoint is outermost and checkpoint and not tensors:
        raise ValueError(
            f"{path} holds no state dict, neither alone nor under {', '.join(map(repr, _WRAPPERS))}: its keys are "
            f"{name_some(checkpoint)}"
        )
    return checkpoint


def check_state_dict(state_dict: object) -> None:
    """Raises `ValueError` unless this is a dict, not empty, of plain tensors by name, each with all of its numbers."""
    if not isinstance(state_dict, dict):
        raise ValueError(f"its state dict is a {type(state_dict).__name__} instead of a dict of tensors by name")
    if not state_dict:
        raise ValueError("it holds no tensors")
    if odd := [key for key in state_dict if not isinstance(key, str)]:
        raise ValueError(f"its tensors must have names; got the {type(odd[0]).__name__} {name_some(odd)}")
    for key, tensor in state_dict.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{name_some([key])} is a {type(tensor).__name__} instead of a tensor")
        is_plain = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta
        # Strides of zero make a tensor of any size from one number.
        if not is_plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(
                f"{name_some([key])} is sparse, quantized or without numbers of its own: save plain tensors, with "
                ".dequantize(), .to_dense() or .contiguous()"
            )


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
    common = [key for key in own if key in state_dict]
    shapes = [
        f"{key}: {tuple(state_dict[key].shape)} instead of {tuple(own[key].shape)}"
        for key in common
        if state_dict[key].shape != own[key].shape
    ]
    kinds = [
        f"{key}: {state_dict[key].dtype} instead of {own[key].dtype}"
        for key in common
        if _kind(state_dict[key]) != _kind(own[key])
    ]
    problems = [
        f"{what} ({len(keys)}): {name_some(keys)}"
        for what, keys in (
            ("missing", missing),
            ("not known", unexpected),
            ("of another shape", shapes),
            ("of another type", kinds),
        )
        if keys
    ]
    if problems:
        raise ValueError(
            f"the checkpoint does not fit this {type(model).__name__}; after renaming, its tensors are "
            f"{'; '.join(problems)}. Is it of the same architecture, and was it saved by the source that you named?"
        )
    # In the model's precision, which may overflow.
    state_dict = {key: tensor.to(own[key].dtype) for key, tensor in state_dict.items()}
    check_finite(state_dict, "the checkpoint")
    model.load_state_dict(state_dict, strict=not new)


def _kind(tensor: torch.Tensor) -> str:
    """Numbers of one kind are converted without harm, such as float16 to float32."""
    if tensor.is_floating_point():
        return "floating"
    return "integer" if tensor.dtype is not torch.bool and not tensor.is_complex() else str(tensor.dtype)
