"""Masks of the masked-image models: boolean, `True` where a patch is removed, patches row by row."""

import torch


def random_patch_mask(batch_size: int, num_patches: int, mask_ratio: float, device: torch.device) -> torch.Tensor:
    """Draws masks in which every image keeps `int(num_patches * (1 - mask_ratio))` patches, chosen uniformly.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, num_patches)`.
    """
    num_visible = int(num_patches * (1 - mask_ratio))
    order = torch.rand(batch_size, num_patches, device=device).argsort(dim=1)
    return order.argsort(dim=1) >= num_visible


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


def unpatchify(patches: torch.Tensor, patch_size: int, channels: int) -> torch.Tensor:
    """Puts the patch vectors of square images, as `patchify` makes them, together again: `(B, C, H, W)`."""
    batch_size, num_patches, _ = patches.shape
    side = int(num_patches**0.5)
    patches = patches.reshape(batch_size, side, side, patch_size, patch_size, channels)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch_size, channels, side * patch_size, side * patch_size)
