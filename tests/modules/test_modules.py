import pytest
import torch

from ssl_hub.modules.masking import draw_patches, patchify, unpatchify, visible_patch_indices
from ssl_hub.modules.position_embeddings import sincos_position_embedding_2d


@pytest.mark.parametrize(("num_patches", "visible"), [(196, 49), (256, 64), (9, 4)])
def test_draw_patches_removes_the_same_number_everywhere(num_patches, visible):
    mask = draw_patches(50, num_patches, num_patches - visible, torch.device("cpu"))
    assert mask.shape == (50, num_patches) and mask.dtype == torch.bool
    assert ((~mask).sum(dim=1) == visible).all()
    assert len(mask.unique(dim=0)) > 25  # images differ


def test_draw_patches_is_uniform():
    mask = draw_patches(20_000, 16, 12, torch.device("cpu")).float()
    assert (mask.mean(dim=0) - 0.75).abs().max() < 0.02
    # every pair of patches is kept together as often as any other: 4 * 3 of 16 * 15
    together = (1 - mask).T @ (1 - mask) / len(mask)
    pairs = together[~torch.eye(16, dtype=torch.bool)]
    assert (pairs - 12 / 240).abs().max() < 0.01


def test_visible_patch_indices_are_in_order():
    mask = torch.tensor([[True, False, True, False], [False, False, True, True]])
    assert visible_patch_indices(mask, 2).tolist() == [[1, 3], [0, 1]]


def test_patchify_runs_over_rows_columns_channels():
    image = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6)
    patches = patchify(image, 2)
    assert patches.shape == (1, 6, 8)
    expected = [image[0, c, 2 + i, 4 + j].item() for i in range(2) for j in range(2) for c in range(2)]
    assert patches[0, 5].tolist() == expected  # the last patch: second row, third column


@pytest.mark.parametrize(("channels", "patch_size"), [(3, 4), (1, 8), (2, 1)])
def test_unpatchify_undoes_patchify(channels, patch_size):
    images = torch.randn(2, channels, 16, 16)
    assert torch.equal(unpatchify(patchify(images, patch_size), patch_size, channels), images)


def test_sincos_table_has_the_row_in_its_first_half():
    table = sincos_position_embedding_2d(5, 16)
    assert table.shape == (1, 25, 16)
    grid = table.reshape(5, 5, 16)
    rows, columns = grid[..., :8], grid[..., 8:]
    assert (rows == rows[:, :1]).all() and (columns == columns[:1]).all()
    assert torch.equal(rows[:, 0], columns[0])
    # the first frequency is 1, the second 10000 ** (-1 / 4)
    position = torch.tensor(3.0)
    assert torch.allclose(rows[3, 0, [0, 1, 4]], torch.stack([position.sin(), (position / 10).sin(), position.cos()]))


def test_sincos_table_with_class_token():
    table = sincos_position_embedding_2d(3, 8, cls_token=True)
    assert table.shape == (1, 10, 8)
    assert (table[0, 0] == 0).all()
    assert torch.equal(table[:, 1:], sincos_position_embedding_2d(3, 8))


def test_sincos_table_needs_a_multiple_of_4():
    with pytest.raises(ValueError, match="a number of channels that 4 divides, got 18"):
        sincos_position_embedding_2d(3, 18)
