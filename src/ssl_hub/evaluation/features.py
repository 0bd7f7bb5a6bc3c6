"""Features of a frozen model over a dataset: what every evaluation of this package starts from."""

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import datasets
import torch
from torch import Tensor, nn

from ..data.loading import build_eval_loader
from ..distributed import gather, num_processes, process_index, sum_
from ..lifecycle import FeatureTable
from ..printing import name_some

logger = logging.getLogger(__name__)

# Bytes. A larger table is kept in a file: the system holds as much of it in memory as there is room for.
LARGEST_TABLE_IN_MEMORY = 2**31
# Entries of a table that are on the device at a time: 256 MiB of float32.
_MAX_ENTRIES = 2**26
_CHECKED_ROWS = 16_384


class ExtractedFeatures(NamedTuple):
    """Features `(N, D)` of the images that could be read, float32 on the CPU.

    With labels `(N,)` and the images' rows in the dataset `(N,)`, either None if the loader does not give them.
    """

    features: Tensor
    labels: Tensor | None
    indices: Tensor | None


def extract_features(
    model: nn.Module, loader: Iterable[dict], device: torch.device | str | None = None
) -> ExtractedFeatures:
    """Pooled features of every readable image that `loader` yields, in its order.

    An image that cannot be read has no row here, and a warning tells how many there are: it takes the `indices` to pair
    features with files. [`extract_feature_table`] keeps a row for every image. The model runs in eval mode without
    gradients; afterwards every submodule is back in the mode it was in. The random state of torch is left as it was
    found, so that an evaluation between two steps does not change a training run.

    Args:
        model: `model(pixel_values).pooler_output` must be of shape `(B, D)`.
        loader: yields dicts with `"pixel_values"` `(B, C, H, W)` and, each in all batches or in none, `"labels"` `(B,)`
            and `"indices"` `(B,)`; `"unreadable"`, if there, names the images that were left out.
        device: where the batches are sent; by default where the model's parameters are.

    Raises:
        ValueError: the loader yields no image, or labels or indices in some batches only, or the features are not
            `(B, D)`.
    """
    device = device or next(model.parameters()).device
    features: list[Tensor] = []
    others: dict[str, list[Tensor]] = {"labels": [], "indices": []}
    unreadable: list[str] = []
    with evaluation_mode(model):
        for batch in loader:
            unreadable += batch.get("unreadable", [])
            if len(batch["pixel_values"]) > 0:  # else none of its images could be read
                features.append(_checked(model(batch["pixel_values"].to(device)).pooler_output))
                for name in others.keys() & batch.keys():
                    others[name].append(batch[name].cpu())
    if unreadable:
        logger.warning("%d images cannot be read and have no features: %s", len(unreadable), name_some(unreadable))
    if not features:
        raise ValueError("The loader yields no image: give it at least one (mind drop_last and the split).")
    for name, tensors in others.items():
        if tensors and len(tensors) != len(features):
            raise ValueError(
                f"{len(tensors)} of {len(features)} batches have {name!r}: give them in all batches or none."
            )
    labels, indices = (torch.cat(tensors) if tensors else None for tensors in others.values())
    return ExtractedFeatures(torch.cat(features), labels, indices)


def extract_feature_table(
    extract: Callable[[Tensor], Tensor] | None,
    model: nn.Module,
    loader: Iterable[dict],
    num_rows: int,
    device: torch.device | str | None = None,
    offset: int = 0,
) -> FeatureTable:
    """Features by row of a dataset: row i is image i, zero and not `known` where this loader has not read it.

    With several processes each extracts its part, and [`gather_feature_tables`] puts the parts together. Model and
    random state are left as by [`extract_features`].

    Args:
        extract: gives the features `(B, D)` of normalised images `(B, C, H, W)`; None for the model's pooled features.
        model: what is put in eval mode meanwhile.
        loader: yields dicts with `"pixel_values"` `(B, C, H, W)` and `"indices"` `(B,)`.
        num_rows: of the whole dataset, N.
        device: where the batches are sent; by default where the model's parameters are.
        offset: the row in the dataset of the loader's index 0, such as `process_rows(num_rows).start`.

    Returns:
        Features `(N, D)`, float32, and known rows `(N,)`, on the CPU; D is 0 if no image was read. A table above
        `LARGEST_TABLE_IN_MEMORY` lies in a temporary file.

    Raises:
        ValueError: the features are not `(B, D)`, or an index lies outside of the dataset.
    """
    device = device or next(model.parameters()).device
    table = FeatureTable(torch.zeros(num_rows, 0), torch.zeros(num_rows, dtype=torch.bool))
    with evaluation_mode(model):
        for batch in loader:
            if len(batch["pixel_values"]) == 0:  # none of its images could be read
                continue
            rows = batch["indices"].cpu() + offset
            if rows.min() < 0 or rows.max() >= num_rows:
                raise ValueError(
                    f"The loader's rows {int(rows.min())} to {int(rows.max())} (offset {offset}) are not all among the "
                    f"{num_rows} of the dataset."
                )
            pixel_values = batch["pixel_values"].to(device)
            features = _checked(extract(pixel_values) if extract else model(pixel_values).pooler_output)
            if not table.known.any():
                table.features = _zeros(num_rows, features.shape[1])
            table.features[rows] = features
            table.known[rows] = True
    return table


def extract_dataset(
    model: nn.Module,
    dataset: datasets.Dataset,
    image_processor,
    *,
    batch_size: int,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    extract: Callable[[Tensor], Tensor] | None = None,
) -> FeatureTable:
    """Features of every image of a dataset, the same on every process; each extracts those of its part.

    Args:
        dataset: what `load_image_dataset` returns.
        image_processor: makes `pixel_values` of images.
        batch_size, num_workers: of each process.
        model, device, extract: as in [`extract_feature_table`], which raises the same errors.
    """
    device = device or next(model.parameters()).device
    rows = process_rows(len(dataset))
    loader = build_eval_loader(dataset.select(rows), image_processor, batch_size=batch_size, num_workers=num_workers)
    table = extract_feature_table(extract, model, loader, len(dataset), device, offset=rows.start)
    return gather_feature_tables(table, device)


def process_rows(num_rows: int) -> range:
    """The rows of a dataset that this process extracts; all of them on a single process."""
    start, stop = (num_rows * index // num_processes() for index in (process_index(), process_index() + 1))
    return range(start, stop)


def gather_feature_tables(table: FeatureTable, device: torch.device | str = "cpu") -> FeatureTable:
    """Puts the parts of all processes together: the result is the same on every process; a no-op on a single one.

    Args:
        table: of this process, with the rows that it has read and zeros elsewhere.
        device: one that the processes communicate on (the accelerator's for NCCL); a part of the table at a time.

    Raises:
        ValueError: two processes know the same row.
    """
    if num_processes() == 1:
        return table
    num_rows = len(table.known)
    counts = sum_(table.known.to(device, torch.int32)).cpu()
    if counts.max() > 1:
        raise ValueError(
            f"{int((counts > 1).sum())} rows were extracted by several processes: give each its own, see process_rows."
        )
    # A process without a readable image does not know the width.
    width = int(gather(torch.tensor([table.features.shape[1]], device=device)).max())
    features = table.features if table.features.shape[1] == width else _zeros(num_rows, width)
    gathered = _zeros(num_rows, width)
    for rows in torch.arange(num_rows).split(max(1, _MAX_ENTRIES // max(1, width))):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        # A row is zero on all processes but one, so that the sum is exact.
        gathered[part] = sum_(features[part].to(device, copy=True)).cpu()
    return FeatureTable(gathered, counts.bool())


def known_rows(table: FeatureTable) -> Tensor:
    """The features of the images that could be read; the table's own where that is all of them."""
    if table.known.all():
        return table.features
    rows = table.known.nonzero().flatten()
    features = _zeros(len(rows), table.features.shape[1])
    for part, source in zip(features.split(_CHECKED_ROWS), rows.split(_CHECKED_ROWS), strict=True):
        part.copy_(table.features[source])
    return features


def _zeros(num_rows: int, width: int) -> Tensor:
    """A table of zeros; a large one lies in a temporary file (in `TMPDIR`), which goes when nobody holds the table."""
    if num_rows * width * 4 <= LARGEST_TABLE_IN_MEMORY:
        return torch.zeros(num_rows, width)
    with tempfile.NamedTemporaryFile(prefix="ssl_hub_features_") as file:
        return torch.from_file(file.name, shared=True, size=num_rows * width).view(num_rows, width)


def double(features: Tensor) -> Tensor:
    """In double precision: on the CPU for a device of Apple's, which has none."""
    return features.cpu().double() if features.device.type == "mps" else features.double()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients. Afterwards every submodule, and the random state, is as it was."""
    training_modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        # A DataLoader draws a seed from the global CPU generator each time it is iterated.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            yield
    finally:
        for module, training in training_modes:
            module.training = training


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2:
        raise ValueError(
            f"The features have the shape {tuple(features.shape)}, expected (batch, dimensions): flatten them in the "
            "model."
        )
    return features.float().cpu()


def check_features(name: str, features: Tensor, labels: Tensor | None = None) -> None:
    """Raises a ValueError unless `features` is a finite, non-empty `(N, D)` and `labels`, if given, an integer `(N,)`.

    Args:
        name: what the error calls the set, such as "train".
    """
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"The {name} features have the shape {tuple(features.shape)}, expected (N, D) with N, D >= 1.")
    # In chunks, as features may be memory-mapped. The extremes show in one pass whether there is a NaN or infinity.
    chunks = features.split(_CHECKED_ROWS)
    if not all(torch.stack(chunk.aminmax()).isfinite().all() for chunk in chunks):
        not_finite = sum(int((~chunk.isfinite().all(dim=1)).sum()) for chunk in chunks)
        raise ValueError(
            f"{not_finite} of {len(features)} {name} features hold NaN or infinity: the model has diverged, "
            "or its input was not finite."
        )
    if labels is None:
        return
    if labels.shape != features.shape[:1]:
        raise ValueError(f"The {name} set has {len(features)} features but labels of shape {tuple(labels.shape)}.")
    if labels.is_floating_point() or labels.min() < 0:
        raise ValueError(f"The {name} labels must be class indices, integers >= 0; got {labels.dtype} {labels.min()}.")
