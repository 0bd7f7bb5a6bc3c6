"""Features of several views of an image, for what compares them."""

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice

import datasets
import torch
from torch import Tensor, nn

from ..data.loading import build_view_loader
from ..data.views import View
from ..data.views.crop import CropView
from .features import extract_feature_table, gather_feature_tables, known_rows, process_rows


def choose_views(views: Sequence[View], num_views: int) -> list[View]:
    """That many views, in turns those of a recipe that have the size of its first.

    Raises:
        ValueError: the first shows patches of an image.
    """
    first = views[0]
    if not isinstance(first, CropView):
        raise ValueError("the views of this recipe show patches of an image, no whole ones")
    alike = [view for view in views if isinstance(view, CropView) and view.size == first.size]
    return list(islice(cycle(alike), num_views))


def extract_view_features(
    model: nn.Module,
    dataset: datasets.Dataset,
    views: Sequence[View],
    prepare: Callable[[list[Tensor]], list[Tensor]],
    *,
    seed: int,
    batch_size: int,
    num_workers: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Pooled features `(N, V, D)` of V views of each image that can be read, the same on every process and each time.

    Every process computes those of a part of the images. Model and random state are left as by `extract_features`.

    Args:
        views: V ones.
        prepare: from uint8 `(B, 3, H, W)`, a tensor a view, to what the model takes.
        seed: of the views.
        batch_size: images a forward pass.
        device: where the batches are sent; by default where the model's parameters are.
    """
    rows, num_views = process_rows(len(dataset)), len(views)
    loader = build_view_loader(
        dataset, views, rows, batch_size=max(1, batch_size // num_views), seed=seed, num_workers=num_workers
    )

    def batches() -> Iterator[dict]:
        done = rows.start
        for batch in loader:
            asked = torch.arange(done, done + len(batch["indices"]))
            done += len(asked)
            readable = batch["indices"] == asked
            if readable.any():
                shown = torch.stack(prepare([view[readable] for view in batch["pixel_values"]]), dim=1)
                yield {"pixel_values": shown, "indices": asked[readable]}

    def extract(pixel_values: Tensor) -> Tensor:
        return model(pixel_values.flatten(0, 1)).pooler_output.unflatten(0, (-1, num_views)).flatten(1)

    table = gather_feature_tables(extract_feature_table(extract, model, batches(), len(dataset), device), device)
    return known_rows(table).unflatten(1, (num_views, -1))
