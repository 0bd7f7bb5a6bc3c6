"""Pictures of what a masked-image model reconstructs."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.utils import make_grid

_DPI = 100


def plot_reconstruction(
    original: Tensor,
    masked_image: Tensor,
    reconstruction: Tensor,
    path: str | Path,
    mask: Tensor | None = None,
    with_prediction: bool = False,
) -> None:
    """Writes a PNG with the rows original, masked and reconstruction, and a column for each image.

    Args:
        original: `(N, 3, H, W)`, pixels in [0, 1]; values outside are clipped, in all three.
        masked_image: the same shape, what the model saw.
        reconstruction: the same shape, what it made of it.
        path: the file to write.
        mask: `(N, num_patches)`, True where a patch was removed. When given, the visible patches of the reconstruction
            are shown as in the original: a model is not trained to predict them.
        with_prediction: whether a row before it has all of what was predicted.

    Raises:
        ValueError: shapes that do not fit.
    """
    if original.ndim != 4 or original.shape[1] != 3 or len(original) == 0:
        raise ValueError(f"The original has the shape {tuple(original.shape)}, expected (N, 3, H, W) with N >= 1.")
    for name, images in (("masked_image", masked_image), ("reconstruction", reconstruction)):
        if images.shape != original.shape:
            raise ValueError(f"{name} has the shape {tuple(images.shape)}, the original {tuple(original.shape)}.")
    rows = {"original": original, "masked": masked_image}
    if with_prediction:
        rows["prediction"] = reconstruction
    if mask is not None:
        reconstruction = torch.where(_mask_of_pixels(mask, original), reconstruction, original)
    rows["reconstruction"] = reconstruction

    count, _, height, width = original.shape
    column_inches = max(1.2, width / _DPI)
    size = (count * column_inches, len(rows) * (column_inches * height / width + 0.3))
    figure = Figure(figsize=size, layout="constrained")
    for axes, (title, images) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        grid = make_grid(images.detach().float().cpu().clamp(0, 1), nrow=count, padding=1, pad_value=1)
        # "antialiased" is nearest-neighbour for small images, which are enlarged, and smooth for shrunken ones.
        axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="antialiased")
        axes.set_title(title)
        axes.set_axis_off()
    figure.savefig(path, format="png", dpi=_DPI)


def _mask_of_pixels(mask: Tensor, images: Tensor) -> Tensor:
    """A mask of patches, `(N, num_patches)` in row order, as one of pixels, `(N, 1, H, W)`."""
    count, _, height, width = images.shape
    rows = round((mask.shape[-1] * height / width) ** 0.5)
    columns = mask.shape[-1] // max(rows, 1)
    if mask.shape != (count, rows * columns) or rows * columns == 0 or rows * width != columns * height:
        raise ValueError(
            f"The mask has the shape {tuple(mask.shape)}, expected ({count}, num_patches) with square patches on "
            f"{height}x{width} images."
        )
    grid = mask.to(images.device).view(count, 1, rows, columns).float()
    return interpolate(grid, size=(height, width), mode="nearest").bool()
