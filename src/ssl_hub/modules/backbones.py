"""What turns a backbone's output into one feature vector an image."""

import torch


def pool_features(last_hidden_state: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pools a backbone's last hidden state.

    Args:
        last_hidden_state: tokens `(B, 1 + L, D)`, the class token first, or a feature map `(B, D, H, W)`.
        pooling: `"cls"` or `"mean"` (of the patch tokens); a feature map is always averaged.

    Returns:
        `torch.Tensor`: features `(B, D)`.
    """
    if last_hidden_state.ndim == 4:
        return last_hidden_state.mean(dim=(2, 3))
    return last_hidden_state[:, 0] if pooling == "cls" else last_hidden_state[:, 1:].mean(dim=1)
