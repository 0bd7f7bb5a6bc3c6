"""Fixed position embeddings."""

import torch


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
