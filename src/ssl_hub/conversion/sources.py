"""Loading a checkpoint that other code wrote."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ..configuration_utils import SSLConfig
from ..modeling_utils import SUBMODULES, SSLModel
from ..printing import name_some
from . import authors, backbones, libraries, mmselfsup, transformers_models
from .renaming import Layout, closest
from .shapes import config_from_shapes
from .state_dicts import check_state_dict, load_strictly, read_checkpoint, unwrap
from .verification import compare_features

LAYOUTS: list[Layout] = [
    *mmselfsup.LAYOUTS,
    *authors.LAYOUTS,
    *libraries.LAYOUTS,
    *transformers_models.LAYOUTS,
    *backbones.LAYOUTS,
]
SOURCES = list(dict.fromkeys(layout.source for layout in LAYOUTS))


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint.

    Args:
        layout: what was recognised.
        dropped: their names that were left out, and why.
        new: our names that keep their initialisation.
        difference: the largest one between our features and those of the other library's model, where both were
            computed.
    """

    layout: Layout
    dropped: dict[str, str]
    new: list[str]
    difference: float | None


def layouts_of(source: str | None = None, model_type: str | None = None) -> list[Layout]:
    """The layouts of a source, or of all; of an algorithm, which may start from a backbone alone too, or of all.

    Raises:
        ValueError: there is none.
    """
    if source is not None and source not in SOURCES:
        raise ValueError(f"no conversion from {source!r}; there is one from {', '.join(SOURCES)}")
    found = [
        layout
        for layout in LAYOUTS
        if source in (None, layout.source) and (model_type is None or layout.model_type in (None, model_type))
    ]
    if not found:
        known = sorted({layout.model_type for layout in LAYOUTS if layout.source == source and layout.model_type})
        raise ValueError(f"no conversion of {model_type!r} from {source}; there is one of {', '.join(known)}")
    return found


def recognise(names: Iterable[str], source: str | None = None, model_type: str | None = None) -> Layout:
    """The layout that explains all names of a state dict.

    Args:
        names: of its tensors.
        source, model_type: where they are known.

    Raises:
        ValueError: no layout explains all of them, or several do.
    """
    names = list(names)
    layouts = layouts_of(source, model_type)
    fitting = [layout for layout in layouts if next(layout.unknown(names), None) is None]
    if not fitting:
        layout, left_over = closest(layouts, names)
        raise ValueError(
            f"the closest source, {layout}, has no tensors named {name_some(left_over)} ({len(left_over)} of {len(names)})"
        )

    def rank(layout: Layout) -> tuple[bool, bool, int]:
        """The lowest is best: one of which no submodule is missing, of the algorithm, with the fewest parts missing."""
        expected, found = layout.parts(), layout.parts(names)
        if _submodules(expected) - _submodules(found):
            return True, False, 0
        return False, model_type is not None and layout.model_type is None, len(expected - found)

    ranks = [rank(layout) for layout in fitting]
    fitting = [layout for layout, each in zip(fitting, ranks, strict=True) if each == min(ranks)]
    first = fitting[0]
    ours = (first.model_type, first.targets(names))
    others = [layout for layout in fitting[1:] if (layout.model_type, layout.targets(names)) != ours]
    if others:
        raise ValueError(
            f"its names are those of {', '.join(map(str, [first, *others]))} alike: name the source, and the algorithm by "
            "its recipe"
        )
    return first


def _submodules(parts: set[str]) -> set[str]:
    return {part.split(".")[0] for part in parts} & set(SUBMODULES)


def to_theirs(model: SSLModel, source: str) -> dict[str, torch.Tensor]:
    """The state dict of a model under the names of another code base; the way back from `load_foreign_checkpoint`.

    Args:
        source: one of `SOURCES`; one that knows backbones alone gets the backbone.

    Raises:
        ValueError: it has no counterpart there.
    """
    layouts = layouts_of(source, model.config.model_type)
    whole = [layout for layout in layouts if layout.model_type is not None]
    state_dict = {name: x for name, x in model.state_dict().items() if whole or name.startswith("backbone.")}
    *others, last = whole or layouts
    for layout in others:
        with suppress(ValueError):  # of another backbone
            return layout.to_theirs(state_dict)
    return last.to_theirs(state_dict)


def load_foreign_checkpoint(
    model: SSLModel, path: str | Path, source: str | None = None, new: Sequence[str] = (), verify: bool = False
) -> Conversion:
    """Fills a model with the weights of a checkpoint of another code base.

    Args:
        model: of the same architecture as the checkpoint.
        path: a `.safetensors` or `.pth` file: the state dict, alone or as its code base wraps it. A folder or a name on
            the Hub for the source `"transformers"`.
        source: one of `SOURCES`; by default recognised from the names of the tensors.
        new: prefixes of what the checkpoint may lack and the model then keeps as it was initialised; a teacher becomes
            a copy of the student. Of a backbone alone it lacks all the rest.
        verify: compares features with those of the other library's own model of this file, where there is one.

    Raises:
        OSError: there is no such file, folder or model.
        ValueError: the source or the algorithm is unknown, the file cannot be read safely, a tensor has no place, no
            counterpart or another shape, or the features differ.
    """
    layouts_of(source, model.config.model_type)  # before a file of gigabytes is read
    state_dict = read_state_dict(path, source)
    try:
        layout = recognise(state_dict, source, model.config.model_type)
        converted = layout.to_ours(state_dict)
        if "memory.features" in converted:  # a row an image of the dataset that the checkpoint was trained on
            model.begin_run(len(converted["memory.features"]))
    except ValueError as error:
        raise ValueError(f"{path} is no checkpoint for {model.config.model_type!r}: {error}") from error
    if layout.model_type is None:
        new = (*new, *(f"{name}." for name, _ in model.named_children() if name != "backbone"))
    load_strictly(model, converted, (*new, *layout.kept_elsewhere))
    if hasattr(model, "teacher") and not any(key.startswith("teacher.") for key in converted):
        model.teacher.follow(model, momentum=0.0)
    reasons = {name: layout.reason_to_drop(name) for name in state_dict}
    return Conversion(
        layout,
        {name: reason for name, reason in reasons.items() if reason is not None},
        [name for name in model.state_dict() if name not in converted],
        compare_features(model, layout, state_dict, path) if verify else None,
    )


def config_of_checkpoint(path: str | Path, source: str | None = None) -> SSLConfig:
    """The configuration of a checkpoint of another code base, from the names and the shapes of its tensors.

    What is in no shape has the default of the algorithm; a ViT gets the published number of heads for its width.

    Raises:
        OSError, ValueError: as `load_foreign_checkpoint`, or the names are those of a backbone alone.
    """
    state_dict = read_state_dict(path, source)
    try:
        layout = recognise(state_dict, source)
        if layout.model_type is None:
            raise ValueError(f"{layout} does not say which algorithm: name a recipe")
        return config_from_shapes(layout.model_type, layout.to_ours(state_dict))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} says too little of its model: {error}") from error


def read_state_dict(path: str | Path, source: str | None = None) -> dict:
    """Reads the tensors of a file, or of a model of transformers, under the names that they have there.

    Raises:
        OSError, ValueError: as `load_foreign_checkpoint`.
    """
    if source == "transformers" or (source is None and (Path(path) / "config.json").is_file()):
        return transformers_models.load_model(path).state_dict()
    state_dict = unwrap(read_checkpoint(path), path)
    try:
        check_state_dict(state_dict)
    except ValueError as error:
        raise ValueError(f"{path} is no checkpoint: {error}") from error
    return state_dict
