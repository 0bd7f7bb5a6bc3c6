"""Masks of the masked-image models: boolean, `True` where a patch is removed, patches row by row."""

import math

import torch

from .checks import check_values


def draw_patches(batch_size: int, num_patches: int, num_masked: int, device: torch.device) -> torch.Tensor:
    """Draws masks `(batch_size, num_patches)` with exactly `num_masked` patches each, chosen uniformly."""
    order = torch.rand(batch_size, num_patches, device=device).argsort(dim=1)
    return order.argsort(dim=1) >= num_patches - num_masked


def aligned_patch_mask(
    batch_size: int, rows: int, columns: int, num_masked: int, device: torch.device, cell_size: int
) -> torch.Tensor:
    """Draws masks of square cells of several patches, chosen uniformly (SimMIM, arXiv 2111.09886).

    Args:
        rows, columns: of patches.
        num_masked: number of patches, those of whole cells.
        cell_size: side length of a cell, in patches; it divides rows and columns.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, rows * columns)`.
    """
    rows, columns = rows // cell_size, columns // cell_size
    cells = draw_patches(batch_size, rows * columns, num_masked // cell_size**2, device)
    return pixel_mask(cells, (rows, columns), cell_size).flatten(1)


def blockwise_patch_mask(
    batch_size: int,
    rows: int,
    columns: int,
    num_masked: int,
    device: torch.device,
    min_num_patches: int = 16,
    min_aspect: float = 0.3,
) -> torch.Tensor:
    """Draws masks of rectangles, one over the other, with exactly `num_masked` patches each (BEiT, arXiv 2106.08254).

    All images at once, so that nothing waits for the device: a rectangle that does not fit into an image, or masks no
    patch anew or too many, is drawn again in the next round. What is missing after the last round is masked patch by
    patch.

    Args:
        min_num_patches: of a rectangle, while so many are missing.
        min_aspect: height / width of a rectangle lies between it and its inverse.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, rows * columns)`.
    """
    mask = torch.zeros(batch_size, rows, columns, dtype=torch.bool, device=device)
    row, column = torch.arange(rows, device=device), torch.arange(columns, device=device)
    for _ in range(64):
        missing = num_masked - mask.sum(dim=(1, 2))
        area, aspect, top, left = torch.rand(4, batch_size, device=device)
        # Where fewer are missing than the smallest rectangle has, the bounds change places, as in BEiT's code.
        area = min_num_patches + area * (missing - min_num_patches)
        aspect = torch.exp((2 * aspect - 1) * math.log(min_aspect))
        height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        top, left = (top * (rows - height + 1)).floor(), (left * (columns - width + 1)).floor()
        in_rows = (row >= top[:, None]) & (row < (top + height)[:, None])
        in_columns = (column >= left[:, None]) & (column < (left + width)[:, None])
        block = in_rows[:, :, None] & in_columns[:, None, :]
        newly_masked = (block & ~mask).sum(dim=(1, 2))
        fits = (height < rows) & (width < columns) & (newly_masked <= missing)
        mask |= block & fits[:, None, None]
    mask = mask.flatten(1)
    # Masked patches come first, then the others at random.
    order = (torch.rand(mask.shape, device=device) - mask.float()).argsort(dim=1)
    return order.argsort(dim=1) < num_masked


def check_mask_shape(bool_masked_pos: torch.Tensor, batch_size: int, num_patches: int) -> None:
    """Raises `ValueError` unless a mask has the shape `(batch_size, num_patches)`."""
    if bool_masked_pos.shape != (batch_size, num_patches):
        raise ValueError(
            f"bool_masked_pos must have the shape ({batch_size}, {num_patches}), one entry a patch; got "
            f"{tuple(bool_masked_pos.shape)}. In a recipe, `patch` of a view's mask is the model's patch size."
        )


def check_patch_mask(bool_masked_pos: torch.Tensor, num_masked: int | None) -> int:
    """The number of patches that a mask `(batch_size, num_patches)` removes from every image.

    Args:
        num_masked: that number, where it is known; without it the host waits for what the mask holds.

    Raises:
        ValueError: the mask removes different numbers, none or all.
    """
    counts, num_patches = bool_masked_pos.sum(dim=1), bool_masked_pos.shape[1]
    if num_masked is None:
        num_masked = int(counts[0])
    check_values(
        (counts == num_masked).all() & (0 < num_masked < num_patches),
        "bool_masked_pos must remove the same number of patches from every image of a batch, at least one and not all "
        f"{num_patches}",
        lambda: counts.unique().tolist(),
    )
    return num_masked


def pixel_mask(bool_masked_pos: torch.Tensor, grid_size: tuple[int, int], patch_size: int) -> torch.Tensor:
    """A mask of patches, `(B, rows * columns)`, as one of pixels, `(B, 1, H, W)`."""
    mask = bool_masked_pos.unflatten(1, grid_size)
    return mask.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)[:, None]


def visible_patch_indices(bool_masked_pos: torch.Tensor, num_visible: int) -> torch.Tensor:
    """Indices `(B, num_visible)` of the patches that are kept, in ascending order."""
    return bool_masked_pos.int().argsort(dim=1, stable=True)[:, :num_visible]


def take_patches(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Of tokens `(B, L, D)` those with the indices `(B, M)`: `(B, M, D)`."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))


def patchify(images: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Cuts images `(B, C, H, W)` into patch vectors `(B, num_patches, patch_size**2 * C)`.

    A vector runs over the rows of its patch, then the columns, then the channels.
    """
    batch_size, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    patches = images.reshape(batch_size, channels, rows, patch_size, columns, patch_size)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch_size, rows * columns, patch_size**2 * channels)


def unpatchify(
    patches: torch.Tensor, patch_size: int, channels: int, grid_size: tuple[int, int] | None = None
) -> torch.Tensor:
    """Puts patch vectors, as `patchify` makes them, together again: `(B, C, H, W)`.

    Args:
        grid_size: rows and columns of patches; a square by default.
    """
    batch_size, num_patches, _ = patches.shape
    rows, columns = grid_size or 2 * (math.isqrt(num_patches),)
    patches = patches.reshape(batch_size, rows, columns, patch_size, patch_size, channels)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch_size, channels, rows * patch_size, columns * patch_size)
