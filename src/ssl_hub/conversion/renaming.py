"""Renaming the tensors of a state dict, in both directions, by one table of pairs of names."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch

from ..printing import name_some

Tensors = list[torch.Tensor]


@dataclass(frozen=True)
class Step:
    """What happens to the tensors of a pair, beside their names; the second function undoes the first."""

    to_ours: Callable[[Tensors], Tensors]
    to_theirs: Callable[[Tensors], Tensors]


def _thirds(tensors: Tensors) -> Tensors:
    tensor = tensors[0]
    if tensor.ndim == 0 or len(tensor) % 3:
        raise ValueError(f"has the shape {tuple(tensor.shape)}, which has no three parts")
    return list(tensor.chunk(3))


def _blocks_to_channels(tensors: Tensors) -> Tensors:
    return [tensors[0].unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)]


def _channels_to_blocks(tensors: Tensors) -> Tensors:
    return [tensors[0].unflatten(-1, (-1, 4)).transpose(-1, -2)[..., [0, 2, 1, 3], :].flatten(-2)]


AS_IT_IS = Step(lambda tensors: tensors, lambda tensors: tensors)
# One tensor there for the queries, keys and values of attention.
FUSED = Step(_thirds, lambda parts: [torch.cat(parts)])
# The same, without the bias of the keys. It adds the same to all scores of a query, which the softmax cancels: what it
# was is lost, and it is zero on the way back.
FUSED_WITHOUT_KEY_BIAS = Step(
    lambda tensors: [*_thirds(tensors)[::2]],
    lambda parts: [torch.cat([parts[0], torch.zeros_like(parts[0]), parts[1]])],
)
# One tensor of ours has two names there.
TWICE = Step(lambda tensors: tensors[:1], lambda tensors: tensors * 2)
# A bias in front of a BatchNorm, which takes it away again: `(bias, running_mean)` there. It is zero on the way back.
FOLDED_BIAS = Step(
    lambda tensors: [tensors[1] - tensors[0]], lambda tensors: [torch.zeros_like(tensors[0]), tensors[0]]
)
# A layer without a bias in front of a BatchNorm, `(weight, running_mean)` there, that has one here:
# `(weight, bias, running_mean)`. The bias is folded on the way back.
WITHOUT_BIAS = Step(
    lambda tensors: [tensors[0], torch.zeros_like(tensors[1]), tensors[1]],
    lambda tensors: [tensors[0], tensors[2] - tensors[1]],
)
# PyTorch's weight_norm, `(g, v)` there. On the way back v is the weight itself.
WEIGHT_NORM = Step(
    lambda tensors: [tensors[0] * tensors[1] / tensors[1].norm(dim=1, keepdim=True)],
    lambda tensors: [tensors[0].norm(dim=1, keepdim=True), tensors[0]],
)
# A linear layer there is a convolution of 1 x 1 here; its bias stays as it is.
POINTWISE = Step(
    lambda tensors: [tensor[..., None, None] if tensor.ndim == 2 else tensor for tensor in tensors],
    lambda tensors: [tensor[..., 0, 0] if tensor.ndim == 4 else tensor for tensor in tensors],
)
# Of a queue: a vector is a column there, and the pointer has one element.
TRANSPOSED = Step(lambda tensors: [tensors[0].T], lambda tensors: [tensors[0].T])
SCALAR = Step(lambda tensors: [tensors[0].reshape(())], lambda tensors: [tensors[0].reshape(1)])
# Where a Swin joins 2 x 2 patches, mmcls has the four values of a channel side by side, row by row; the authors and
# transformers have the channels of a patch side by side, and the patches column by column.
PATCH_MERGING = Step(_channels_to_blocks, _blocks_to_channels)

# Their name, our name, and what else is to be done. `{}` stands for a number; a name that ends in a dot for all of a
# layer's tensors, one that ends in `.*` for all of a module's. Several names are several tensors of which one is made, or
# the other way round.
Names = str | tuple[str, ...]
Pair = tuple[Names, Names] | tuple[Names, Names, Step]
Pairs = Sequence[Pair]


def under(theirs: str, ours: str, pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs of a module that is at `theirs` there and at `ours` here."""

    def prefixed(prefix: str, names: Names) -> Names:
        return prefix + names if isinstance(names, str) else tuple(prefix + name for name in names)

    return [(prefixed(theirs, pair[0]), prefixed(ours, pair[1]), *pair[2:]) for pair in pairs]


@dataclass(frozen=True)
class Layout:
    """How a code base names the tensors of an algorithm.

    Args:
        source: the code base.
        model_type: the algorithm; None for a backbone alone, which any algorithm may start from.
        pairs: of their names and ours. The first one that fits a name holds.
        dropped: what is left out of their files, as a regular expression of whole names, and why.
        kept_elsewhere: beginnings of the names of ours that they do not save.
    """

    source: str
    model_type: str | None
    pairs: Pairs
    dropped: Mapping[str, str] = field(default_factory=dict)
    kept_elsewhere: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.source} ({self.model_type or 'a backbone alone'})"

    def reason_to_drop(self, name: str) -> str | None:
        return next((reason for pattern, reason in self.dropped.items() if re.fullmatch(pattern, name)), None)

    def unknown(self, names: Iterable[str]) -> Iterator[str]:
        """Those of their names that are neither in a pair nor dropped."""
        patterns = [_pattern(name) for pair in self.pairs for name in _as_tuple(pair[0])]
        for name in names:
            if self.reason_to_drop(name) is None and not any(pattern.fullmatch(name) for pattern in patterns):
                yield name

    def targets(self, names: Iterable[str]) -> set[str]:
        """Our names of what their tensors of these names become."""
        return {
            _filled(target, match.groups())
            for name in names
            if self.reason_to_drop(name) is None
            for pattern, targets in ((_pattern(x), pair[1]) for pair in self.pairs for x in _as_tuple(pair[0]))
            if (match := pattern.fullmatch(name))
            for target in _as_tuple(targets)
        }

    def parts(self, names: Iterable[str] | None = None) -> set[str]:
        """The modules of ours, such as `neck.mlp`, that their tensors of these names are in; by default all."""
        targets = self.targets(names) if names is not None else {x for pair in self.pairs for x in _as_tuple(pair[1])}
        return {".".join(target.split(".")[:-1][:2]) for target in targets}

    def to_ours(self, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Their tensors under our names, as views of the same memory wherever that is possible.

        Raises:
            ValueError: a tensor has no counterpart, two would get one name, or a tensor cannot be split.
        """
        kept = {name: tensor for name, tensor in state_dict.items() if self.reason_to_drop(name) is None}
        rules = [(pair[0], pair[1], _step(pair).to_ours) for pair in self.pairs]
        return _rename(kept, rules, f"has no counterpart among {self}'s")

    def to_theirs(self, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Our tensors under their names; what they keep elsewhere is left out.

        Raises:
            ValueError: a tensor has no counterpart.
        """
        kept = {name: tensor for name, tensor in state_dict.items() if not name.startswith(self.kept_elsewhere)}
        rules = [(pair[1], pair[0], _step(pair).to_theirs) for pair in self.pairs]
        return _rename(kept, rules, f"has no counterpart in {self}")


def closest(layouts: Iterable[Layout], names: Iterable[str]) -> tuple[Layout, list[str]]:
    """The layout that explains most of the names, and those that it does not."""
    left_over = [(layout, list(layout.unknown(names))) for layout in layouts]
    return min(left_over, key=lambda found: len(found[1]))


def _step(pair: Pair) -> Step:
    return pair[2] if len(pair) == 3 else AS_IT_IS


def _as_tuple(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


@cache
def _pattern(name: str) -> re.Pattern:
    """Of the whole names that a name of a table stands for; its groups are what varies."""
    pattern = re.escape(name).replace(r"\{\}", r"(\d+)").replace(r"\*", "(.+)")
    return re.compile(pattern + "([^.]+)" if name.endswith(".") else pattern)


def _filled(name: str, values: Sequence[str]) -> str:
    return (name + "{}" if name.endswith(".") else name.replace("*", "{}")).format(*values)


def _rename(state_dict, rules, complaint: str) -> dict[str, torch.Tensor]:
    compiled = [
        (_as_tuple(sources), [_pattern(name) for name in _as_tuple(sources)], _as_tuple(targets), step)
        for sources, targets, step in rules
    ]
    renamed: dict[str, torch.Tensor] = {}
    origins: dict[str, str] = {}
    used: set[str] = set()
    unknown = []
    for key in state_dict:
        if key in used:
            continue
        for sources, patterns, targets, step in compiled:
            match = next((match for pattern in patterns if (match := pattern.fullmatch(key))), None)
            keys = [_filled(name, match.groups()) for name in sources] if match else []
            if not match or any(each not in state_dict for each in keys):
                continue
            try:
                tensors = step([state_dict[each] for each in keys])
            except ValueError as error:
                raise ValueError(f"{name_some([key])} {error}") from error
            for target, tensor in zip(targets, tensors, strict=True):
                name = _filled(target, match.groups())
                if name in renamed:
                    raise ValueError(f"two of its tensors would both become {name}: {name_some([origins[name], key])}")
                renamed[name], origins[name] = tensor, key
            used.update(keys)
            break
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f"{name_some(unknown)} {complaint} ({len(unknown)} of {len(state_dict)} tensors)")
    return renamed
