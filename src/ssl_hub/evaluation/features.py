"""Features of a frozen model over a dataset: what every evaluation of this package starts from."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def extract_features(
    model: nn.Module, loader: Iterable[dict], device: torch.device | str | None = None
) -> tuple[Tensor, Tensor | None]:
    """Pooled features of every image that `loader` yields, in its order.

    The model runs in eval mode without gradients; afterwards every submodule is back in the mode it was in. The random
    state of torch is left as it was found, so that an evaluation between two steps does not change a training run.

    Args:
        model: `model(pixel_values).pooler_output` must be of shape `(B, D)`.
        loader: yields dicts with `"pixel_values"` `(B, C, H, W)` and, in all batches or in none, `"labels"` `(B,)`.
        device: where the batches are sent; by default where the model's parameters are.

    Returns:
        Features `(N, D)`, float32 on the CPU, and labels `(N,)` on the CPU, or None if the loader has none.

    Raises:
        ValueError: the loader yields no batch, or labels in some batches only, or the features are not `(B, D)`.
    """
    device = device or next(model.parameters()).device
    training_modes = [(module, module.training) for module in model.modules()]
    features, labels = [], []
    try:
        model.eval()
        # A DataLoader draws a seed from the global CPU generator each time it is iterated.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for batch in loader:
                if len(batch["pixel_values"]) == 0:  # none of its images could be read
                    continue
                pooled = model(batch["pixel_values"].to(device)).pooler_output
                if pooled.ndim != 2:
                    raise ValueError(
                        f"pooler_output has the shape {tuple(pooled.shape)}, expected (batch, dimensions): flatten it "
                        "in the model."
                    )
                features.append(pooled.float().cpu())
                if "labels" in batch:
                    labels.append(batch["labels"].cpu())
    finally:
        for module, training in training_modes:
            module.training = training

    if not features:
        raise ValueError("The loader yields no batch: give it at least one image (mind drop_last and the split).")
    if labels and len(labels) != len(features):
        raise ValueError(f"{len(labels)} of {len(features)} batches have 'labels': give them in all batches or none.")
    return torch.cat(features), torch.cat(labels) if labels else None


def check_features(name: str, features: Tensor, labels: Tensor | None = None) -> None:
    """Raises a ValueError unless `features` is a finite, non-empty `(N, D)` and `labels`, if given, an integer `(N,)`.

    Args:
        name: what the error calls the set, such as "train".
    """
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"The {name} features have the shape {tuple(features.shape)}, expected (N, D) with N, D >= 1.")
    finite = torch.isfinite(features).all(dim=1)
    if not finite.all():
        raise ValueError(
            f"{int((~finite).sum())} of {len(features)} {name} features hold NaN or infinity: the model has diverged, "
            "or its input was not finite."
        )
    if labels is None:
        return
    if labels.shape != features.shape[:1]:
        raise ValueError(f"The {name} set has {len(features)} features but labels of shape {tuple(labels.shape)}.")
    if labels.is_floating_point() or labels.min() < 0:
        raise ValueError(f"The {name} labels must be class indices, integers >= 0; got {labels.dtype} {labels.min()}.")
