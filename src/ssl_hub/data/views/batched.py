"""Rendering of whole batches by torch, on any device: the counterparts of what `operations.py` does to one image.

Pixels are float `(N, 3, H, W)` with whole values from 0 to 255, rounded after each step as the 8 bits of one image are.
What was drawn stays on the host, so that no function waits for the device.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor


def on_device(values: np.ndarray, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    return torch.from_numpy(values).to(dtype).to(device, non_blocking=True)


def render_some(
    pixels: Tensor, rows: np.ndarray, render: Callable[[Tensor, Mapping], Tensor], parameters: Mapping
) -> None:
    """Render the images of these rows in place, by their rows of the parameters."""
    if len(rows) > 0:
        index = on_device(rows, pixels.device)
        pixels.index_copy_(0, index, render(pixels[index], {name: value[rows] for name, value in parameters.items()}))


def resize(images: Tensor, boxes: np.ndarray, size: int, mode: str, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """Cut a box out of each image and resize it to a square of `size`, antialiased; some rows and columns of that.

    Args:
        images: uint8 `(N, H, W, 3)`.
        boxes: `(N, 4)`: top, left, bottom and right of the box in pixels.
        mode: "bicubic" or "bilinear".
        rows, columns: `(N, R)` and `(N, C)`: which of the square's. In falling order they mirror it.

    Returns:
        `(N, 3, R, C)`.
    """
    pixels = images.permute(0, 1, 3, 2).float()
    weights = [
        _resize_weights(on_device(boxes, images.device, torch.float32)[:, i::2], size, edge, mode, positions)
        for i, edge, positions in ((0, images.shape[1], rows), (1, images.shape[2], columns))
    ]
    return _separable(pixels, *weights)


def _resize_weights(ends: Tensor, size: int, edge: int, mode: str, positions: np.ndarray) -> Tensor:
    """Of each of the `edge` pixels in each output pixel, `(N, P, edge)`: torch's and Pillow's antialiasing filters."""
    begin, end = ends[:, :1, None], ends[:, 1:, None]
    scale = (end - begin) / size
    centers = begin + (on_device(positions, ends.device, torch.float32)[:, :, None] + 0.5) * scale
    pixels = torch.arange(edge, device=ends.device, dtype=torch.float32)
    distance = (pixels + 0.5 - centers).abs_() / scale.clamp(min=1)
    if mode == "bilinear":
        weights = (1 - distance).clamp_(min=0)
    else:  # with a = -0.5
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0))
    weights = weights * ((pixels >= begin) & (pixels < end))
    return weights / weights.sum(dim=-1, keepdim=True)


def _separable(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Two products a batch: of each image `(H, 3, W)` with its matrices `(R, H)` and `(C, W)`, to `(3, R, C)`."""
    count, height, channels, width = pixels.shape
    across = torch.bmm(pixels.reshape(count, height * channels, width), columns.transpose(1, 2))
    across = across.round_().clamp_(0, 255)  # as torch's kernel for 8 bits does
    down = torch.bmm(rows, across.view(count, height, -1)).view(count, rows.shape[1], channels, -1)
    return down.permute(0, 2, 1, 3).contiguous().round_().clamp_(0, 255)


def cut(pixels: Tensor, corners: np.ndarray, size: int) -> Tensor:
    """Square patches at the corners `(N, P, 2)`, top and left: `(N, P, 3, size, size)`."""
    tops, lefts = on_device(corners, pixels.device).unbind(-1)
    places = torch.arange(size, device=pixels.device)
    rows, columns = tops[:, :, None, None] + places[:, None], lefts[:, :, None, None] + places
    images = torch.arange(len(pixels), device=pixels.device)[:, None, None, None]
    return pixels.permute(0, 2, 3, 1)[images, rows, columns].permute(0, 1, 4, 2, 3).contiguous()


def rotate(pixels: Tensor, parameters: Mapping) -> Tensor:
    """Nearest neighbour, black outside."""
    height, width = pixels.shape[2:]
    angle = -torch.deg2rad(_column(parameters["angle"], pixels)[:, 0])
    y = torch.arange(height, device=pixels.device)[:, None] + 0.5 - height / 2
    x = torch.arange(width, device=pixels.device) + 0.5 - width / 2
    from_x = (angle.cos() * x + angle.sin() * y + width / 2).floor().long()
    from_y = (angle.cos() * y - angle.sin() * x + height / 2).floor().long()
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    place = (from_y.clamp(0, height - 1) * width + from_x.clamp(0, width - 1)).flatten(1)[:, None].expand(-1, 3, -1)
    return pixels.flatten(2).gather(2, place).view_as(pixels) * inside[:, None]


def blend(pixels: Tensor, factors: np.ndarray, with_mean: np.ndarray, with_luma: np.ndarray) -> Tensor:
    """Brightness, contrast and saturation: the weighted mean of each image with black, its mean luma, or its luma.

    Args:
        factors: `(N,)`, the weights of the images; 1 leaves an image as it is.
        with_mean, with_luma: `(N,)`, bool.
    """
    gray = luma(pixels)
    means = gray.mean(dim=(2, 3), keepdim=True).round_()
    rest = (1 - factors) * np.stack([with_mean, with_luma])
    others = torch.addcmul(means * _column(rest[0], pixels), gray, _column(rest[1], pixels))
    return _to_8_bits(torch.addcmul(others, pixels, _column(factors, pixels)))


def turn_hue(pixels: Tensor, parameters: Mapping) -> Tensor:
    """By way of hue, saturation and value of 8 bits each, as OpenCV does."""
    red, green, blue = pixels.unbind(1)
    value, span = pixels.amax(1), pixels.amax(1) - pixels.amin(1)
    sextant = torch.where(
        value == red, green - blue, torch.where(value == green, blue - red + 2 * span, red - green + 4 * span)
    )
    turn = _column(np.trunc(parameters["hue"] * 255), pixels)[:, 0]
    hue = (sextant * (256 / 6) / span.clamp(min=1) + 0.5).floor()
    hue = (hue + turn).remainder(256) * (6 / 255)
    chroma = value * (255 * span / value.clamp(min=1)).round_() / 255
    channels = []
    for offset in (5, 3, 1):
        place = (hue + offset).remainder(6)
        channels.append(value - chroma * torch.minimum(place, 4 - place).clamp_(0, 1))
    return _to_8_bits(torch.stack(channels, dim=1))


def luma(pixels: Tensor) -> Tensor:
    """`(N, 1, H, W)`."""
    return (0.299 * pixels[:, :1] + 0.587 * pixels[:, 1:2] + 0.114 * pixels[:, 2:]).round_()


def luma_gray(pixels: Tensor, parameters: Mapping) -> Tensor:
    return luma(pixels).expand_as(pixels)


def mean_gray(pixels: Tensor, parameters: Mapping) -> Tensor:
    return pixels.mean(dim=1, keepdim=True).round_().expand_as(pixels)


def blur(pixels: Tensor, parameters: Mapping) -> Tensor:
    """Gaussian, as wide as OpenCV's; beyond the border lies the border's pixel."""
    sigma = parameters["sigma"].astype(np.float32)
    radius = np.rint(6 * sigma + 1) // 2
    matrices = [_blur_weights(sigma, radius, edge, pixels.device) for edge in pixels.shape[2:]]
    return _separable(pixels.permute(0, 2, 1, 3), *matrices)


def _blur_weights(sigma: np.ndarray, radius: np.ndarray, edge: int, device: torch.device) -> Tensor:
    """`(N, edge, edge)`."""
    reach = int(radius.max())
    sigmas, radii = (on_device(values, device)[:, None, None] for values in (sigma, radius))
    distance = torch.arange(-reach, edge + reach, device=device) - torch.arange(edge, device=device)[:, None]
    weights = torch.exp(-0.5 * (distance / sigmas) ** 2) * (distance.abs() <= radii)
    inside = weights[..., reach : reach + edge].clone()
    inside[..., 0] += weights[..., :reach].sum(dim=-1)
    inside[..., -1] += weights[..., reach + edge :].sum(dim=-1)
    return inside / inside.sum(dim=-1, keepdim=True)


def solarize(pixels: Tensor, parameters: Mapping, threshold: float) -> Tensor:
    return torch.where(pixels >= threshold, 255 - pixels, pixels)


def _column(values: np.ndarray, pixels: Tensor) -> Tensor:
    """A number for each image, `(N, 1, 1, 1)`."""
    return on_device(values, pixels.device, torch.float32).view(-1, 1, 1, 1)


def _to_8_bits(pixels: Tensor) -> Tensor:
    return pixels.round_().clamp_(0, 255)
