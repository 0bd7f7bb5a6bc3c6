"""Position embeddings: fixed ones, and tables for images of another size."""

import math

import torch
from torch.nn.functional import interpolate


def sincos_position_embedding_2d(
    grid_size: int, dim: int, *, cls_token: bool = False, temperature: float = 10_000.0
) -> torch.Tensor:
    """The fixed 2-D sine-cosine table of MMSelfSup's MAE, MoCo v3 (arXiv 2104.02057) and CAE.

    The first half of the channels encodes the row, the second half the column; the authors' MAE code, and with it
    transformers' ViTMAE, has them the other way round. Trained weights fit only their own table, so a checkpoint's
    table is loaded, never made anew.

    Args:
        grid_size: patches a side.
        dim: channels, a multiple of 4.
        cls_token: whether a row of zeros for the class token comes first.
        temperature: of the frequencies `temperature ** (-i / (dim / 4))`.

    Returns:
        `torch.FloatTensor` of shape `(1, grid_size ** 2 (+ 1), dim)`, patches row by row.
    """
    if dim % 4 != 0:
        raise ValueError(f"a 2-D sine-cosine table needs a number of channels that 4 divides, got {dim}")
    frequencies = 1.0 / temperature ** (torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    angles = torch.arange(grid_size, dtype=torch.float32)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = waves[:, None].expand(-1, grid_size, -1)
    columns = waves[None].expand(grid_size, -1, -1)
    table = torch.cat([rows, columns], dim=2).flatten(0, 1)
    if cls_token:
        table = torch.cat([torch.zeros(1, dim), table])
    return table[None]


def resize_position_table(table: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Interpolates a table `(1, 1 + L, D)` of a square of patches, the class token first, to another grid of patches.

    Bicubic, as transformers' ViT does it.

    Returns:
        `torch.FloatTensor` of shape `(1, 1 + rows * columns, D)`.
    """
    side = math.isqrt(table.shape[1] - 1)
    if grid_size == (side, side):
        return table
    patches = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    patches = interpolate(patches, size=grid_size, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)
