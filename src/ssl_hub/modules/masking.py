"""Masks of the masked-image models: boolean, `True` where a patch is removed, patches row by row."""

import math

import torch

# Rectangles that are drawn for a batch before the rest of a mask is drawn patch by patch; some 30 are needed.
_MAX_BLOCKS = 300


def random_patch_mask(batch_size: int, num_patches: int, num_masked: int, device: torch.device) -> torch.Tensor:
    """Draws masks of so many patches, chosen uniformly.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, num_patches)`.
    """
    order = torch.rand(batch_size, num_patches, device=device).argsort(dim=1)
    return order.argsort(dim=1) >= num_patches - num_masked


def aligned_patch_mask(
    batch_size: int, grid_size: tuple[int, int], num_masked: int, device: torch.device, cell_size: int
) -> torch.Tensor:
    """Draws masks of square cells of several patches, chosen uniformly, as in SimMIM (arXiv 2111.09886).

    Args:
        grid_size: rows and columns of patches.
        num_masked: number of patches, those of whole cells.
        cell_size: side length of a cell, in patches; it divides rows and columns.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, rows * columns)`.
    """
    rows, columns = (size // cell_size for size in grid_size)
    cells = random_patch_mask(batch_size, rows * columns, num_masked // cell_size**2, device)
    return pixel_mask(cells, (rows, columns), cell_size).flatten(1)


def blockwise_patch_mask(
    batch_size: int, grid_size: tuple[int, int], num_masked: int, device: torch.device, smallest_block: int = 16
) -> torch.Tensor:
    """Draws masks of rectangles, one after the other until exactly so many patches are masked (BEiT, arXiv 2106.08254).

    A rectangle has `smallest_block` patches up to as many as are missing, and a height / width from 0.3 to 1 / 0.3. One
    that would mask nothing new, or too much, is drawn anew.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, rows * columns)`.
    """
    # On the CPU: a GPU would have to be asked after every rectangle whether it was the last.
    rows, columns = grid_size
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    mask = torch.zeros(batch_size, rows, columns, dtype=torch.bool)
    smallest = min(smallest_block, num_masked)
    for _ in range(_MAX_BLOCKS):
        missing = num_masked - mask.sum(dim=(1, 2))
        if not missing.any():
            break
        area, aspect, top, left = torch.rand(4, batch_size)
        area = smallest + area * (missing - smallest)  # the bounds change places in the end, as in BEiT's code
        aspect = torch.exp((2 * aspect - 1) * math.log(0.3))
        height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        top, left = (top * (rows - height + 1)).floor(), (left * (columns - width + 1)).floor()
        top, left, bottom, right = (side[:, None, None] for side in (top, left, top + height, left + width))
        block = (row >= top) & (row < bottom) & (column >= left) & (column < right)
        newly_masked = (block & ~mask).sum(dim=(1, 2))
        fits = (height < rows) & (width < columns) & (newly_masked > 0) & (newly_masked <= missing)
        mask |= block & fits[:, None, None]
    # What no rectangle was found for, patch by patch.
    mask = mask.flatten(1)
    order = (torch.rand(mask.shape) + 2.0 * mask).argsort(dim=1, descending=True).argsort(dim=1)
    return (order < num_masked).to(device)


def pixel_mask(bool_masked_pos: torch.Tensor, grid_size: tuple[int, int], patch_size: int) -> torch.Tensor:
    """A mask of patches, `(B, rows * columns)`, as one of pixels, `(B, 1, H, W)`."""
    mask = bool_masked_pos.unflatten(1, grid_size)
    return mask.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)[:, None]


def visible_patch_indices(bool_masked_pos: torch.Tensor, num_visible: int) -> torch.Tensor:
    """Indices `(B, num_visible)` of the patches that are kept, in ascending order."""
    return bool_masked_pos.int().argsort(dim=1, stable=True)[:, :num_visible]


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
