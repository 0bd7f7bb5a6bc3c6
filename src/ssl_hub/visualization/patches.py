"""What a model makes of the patches of an image: the attention of its class token, and components of their features."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..evaluation.feature_models import patch_tokens
from ..modules.backbones import backbone_layout, describe, feature_map

_DPI = 100


@torch.no_grad()
def class_attention(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """Where the class token of a ViT's last layer looks, as the pictures of DINO show it (arXiv 2104.14294).

    Args:
        model: what `load_feature_model` returned; its attention is computed the plain way from then on, because fused
            kernels do not tell their weights.
        pixel_values: `(B, C, S, S)`, normalised.

    Returns:
        Attention `(B, num_heads, rows, columns)`: weights of the patches, whose sum is at most 1.

    Raises:
        ValueError: the model has no class token, or does not tell its attention.
    """
    layout = backbone_layout(model.backbone)
    name = describe(model.backbone)
    if layout.num_prefix_tokens == 0:
        raise ValueError(f"{name} has no class token, so there is no attention of one to draw")
    try:
        attention = _last_attention(model, pixel_values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} does not tell its attention: {error}") from error
    if attention is None or attention.ndim != 4:
        raise ValueError(f"{name} does not tell its attention, one map a head")
    from_class_token = attention[:, :, 0, layout.num_prefix_tokens :]
    side = round(from_class_token.shape[-1] ** 0.5)
    if side**2 != from_class_token.shape[-1]:
        raise ValueError(f"the attention of {name} is over {from_class_token.shape[-1]} patches, which are no square")
    return from_class_token.unflatten(-1, (side, side)).float().cpu()


def _last_attention(model: nn.Module, pixel_values: Tensor) -> Tensor | None:
    timm_model = getattr(model.backbone, "timm_model", None)
    if timm_model is None:
        model.set_attn_implementation("eager")
        attentions = model(pixel_values, output_attentions=True).attentions
        return attentions[-1] if attentions else None
    from timm.utils import AttentionExtract  # timm takes a while to import

    for module in timm_model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    attentions = AttentionExtract(timm_model, mode="eval", method="hook")(pixel_values)
    return list(attentions.values())[-1] if attentions else None


@torch.no_grad()
def patch_components(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """The first three principal components of the patches' features, as colours (DINOv2, arXiv 2304.07193).

    The components are those of all the images' patches together, so that a colour means the same in each of them.

    Args:
        model: what `load_feature_model` returned.
        pixel_values: `(B, C, S, S)`, normalised.

    Returns:
        Colours `(B, rows, columns, 3)` from 0 to 1.

    Raises:
        ValueError: the model has neither a feature map nor patches, or fewer than three patches or dimensions.
    """
    from sklearn.decomposition import PCA  # scikit-learn takes a second to import

    hidden = model(pixel_values).last_hidden_state
    rows, columns = feature_map(model.backbone, hidden).shape[-2:]
    tokens = patch_tokens(model, hidden).float().cpu()
    flat = tokens.flatten(0, 1)
    if min(flat.shape) < 3 or rows * columns < 4:
        raise ValueError(
            f"{describe(model.backbone)} makes {rows} x {columns} patches of {flat.shape[1]} dimensions, which are too few "
            "for a picture of their components: give larger images"
        )
    components = torch.from_numpy(PCA(n_components=3, random_state=0).fit_transform(flat.numpy()))
    # A few extreme patches would leave all others grey.
    low, high = components.quantile(0.01, dim=0), components.quantile(0.99, dim=0)
    colors = ((components - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return colors.view(len(tokens), rows, columns, 3)


def plot_attention(images: Tensor, attention: Tensor, path: str | os.PathLike, max_heads: int = 6) -> None:
    """Writes a PNG with a row for each image: the image, the mean over the heads, and the heads.

    Args:
        images: `(B, 3, H, W)`, pixels in [0, 1].
        attention: `(B, num_heads, rows, columns)`, see [`class_attention`]. Each map has its own scale.
        path: the file to write.
        max_heads: how many heads are drawn.

    Raises:
        ValueError: shapes that do not fit.
    """
    if attention.ndim != 4 or len(attention) != len(images):
        raise ValueError(f"The attention has the shape {tuple(attention.shape)} for {len(images)} images.")
    heads = attention[:, :max_heads]
    maps = [attention.mean(dim=1), *heads.unbind(dim=1)]
    titles = ["image", f"mean of {attention.shape[1]} heads", *(f"head {i + 1}" for i in range(heads.shape[1]))]
    rows = [
        [_pixels(image), *(values[i].numpy() for values in maps)]
        for i, image in enumerate(images.detach().float().cpu())
    ]
    _plot_grid(rows, titles, path)


def plot_patch_components(images: Tensor, colors: Tensor, path: str | os.PathLike) -> None:
    """Writes a PNG with a column for each image: the image above the colours of its patches.

    Args:
        images: `(B, 3, H, W)`, pixels in [0, 1].
        colors: `(B, rows, columns, 3)`, see [`patch_components`].
        path: the file to write.

    Raises:
        ValueError: shapes that do not fit.
    """
    if colors.ndim != 4 or colors.shape[-1] != 3 or len(colors) != len(images):
        raise ValueError(f"The colours have the shape {tuple(colors.shape)} for {len(images)} images.")
    originals = [_pixels(image) for image in images.detach().float().cpu()]
    _plot_grid([originals, [color.numpy() for color in colors]], None, path)


def _pixels(image: Tensor) -> np.ndarray:
    return image.clamp(0, 1).permute(1, 2, 0).numpy()


def _plot_grid(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str] | None, path: str | os.PathLike) -> None:
    title_height = 0.3 if titles else 0.0
    height = 1.5 * len(rows) + title_height
    figure = Figure(figsize=(1.5 * len(rows[0]), height))
    # By hand: a layout engine takes seconds for so many panels.
    figure.subplots_adjust(
        left=0.005, right=0.995, bottom=0.005, top=0.995 - title_height / height, wspace=0.05, hspace=0.05
    )
    panels = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            axes = panels[row, column]
            axes.imshow(picture, cmap="inferno", interpolation="antialiased")
            axes.set_axis_off()
            if titles is not None and row == 0:
                axes.set_title(titles[column], fontsize=9)
    figure.savefig(path, format="png", dpi=_DPI)
