"""Loading a checkpoint that other code wrote."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from ..modeling_utils import SSLModel
from ..printing import name_some
from . import facebook, masked_image_modeling, microsoft, mmselfsup
from .state_dicts import check_state_dict, load_strictly, read_checkpoint

# source: (under which of these keys a file has its state dict, the conversion by model_type)
SOURCES = {
    # Our model types are MMSelfSup's class names in small letters.
    "mmselfsup": (
        ("state_dict",),
        {name.lower(): partial(mmselfsup.convert_state_dict, name) for name in mmselfsup.RULES},
    ),
    "facebook": (
        ("model", "state_dict"),
        {model_type: partial(facebook.convert_state_dict, model_type) for model_type in facebook.RULES},
    ),
    "microsoft": (
        ("model",),
        {model_type: partial(microsoft.convert_state_dict, model_type) for model_type in microsoft.RULES},
    ),
    # a folder or a name on the Hub instead of a file
    "transformers": (
        (),
        {
            model_type: partial(masked_image_modeling.convert_state_dict, model_type)
            for model_type in masked_image_modeling.RULES
        },
    ),
}
# What no source keeps in its checkpoint, by model_type.
KEPT_ELSEWHERE = {"swav": ("memory.",), "deepcluster": ("memory.",)}


def load_foreign_checkpoint(model: SSLModel, path: str | Path, source: str, new: Sequence[str] = ()) -> None:
    """Fills a model with the weights of a checkpoint of another code base.

    Args:
        model: of the same architecture as the checkpoint.
        path: a `.safetensors` or `.pth` file: the state dict, alone or as its code base wraps it. A folder or a name on
            the Hub for the source `"transformers"`.
        source: a key of `SOURCES`.
        new: prefixes of what the checkpoint may lack and the model then keeps as it was initialised; a teacher becomes
            a copy of the student.

    Raises:
        OSError: there is no such file, folder or model.
        ValueError: the source or the algorithm is unknown, the file cannot be read safely, or a tensor has no place, no
            counterpart or another shape.
    """
    if source not in SOURCES:
        raise ValueError(f"no conversion from {source!r}; there is one from {', '.join(SOURCES)}")
    keys, conversions = SOURCES[source]
    model_type = model.config.model_type
    if model_type not in conversions:
        raise ValueError(f"no conversion of {model_type!r} from {source}; there is one of {', '.join(conversions)}")
    checkpoint = masked_image_modeling.read_model(path) if source == "transformers" else read_checkpoint(path)
    state_dict = next((checkpoint[key] for key in keys if key in checkpoint), checkpoint)
    if state_dict is checkpoint and keys and not all(isinstance(value, torch.Tensor) for value in checkpoint.values()):
        raise ValueError(
            f"{path} is no checkpoint of {source}: it has neither {' nor '.join(map(repr, keys))} nor tensors alone; "
            f"its keys are {name_some(checkpoint)}"
        )
    try:
        check_state_dict(state_dict)
        converted = conversions[model_type](state_dict)
        if "memory.features" in converted:  # a row an image of the dataset that the checkpoint was trained on
            model.begin_run(len(converted["memory.features"]))
    # Rules that turn and split tensors take their shapes for granted.
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        raise ValueError(f"{path} is no checkpoint of {source} for {model_type!r}: {error}") from error
    load_strictly(model, converted, (*new, *KEPT_ELSEWHERE.get(model_type, ())))
    if hasattr(model, "teacher") and not any(key.startswith("teacher.") for key in converted):
        model.teacher.follow(model, momentum=0.0)
