"""Decoding image files of any kind to 8-bit RGB."""

import io

import fsspec
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


class UnreadableImageError(Exception):
    """An image cannot be decoded; `name` is its file or row."""

    def __init__(self, message: str, name: str = ""):
        super().__init__(message)
        self.name = name


def decode_image(image: "dict | Image.Image", name: str = "image") -> Image.Image:
    """Decode an image to RGB, 8 bits a channel, upright.

    The EXIF orientation is applied and transparency is composited on white. 16-bit pixels are scaled to 8 bits, not
    clipped; float pixels are read as 0..1, or as 0..255 when any of them is above 1.

    Args:
        image: A PIL image, or the `{"bytes", "path"}` of a `datasets.Image(decode=False)` column. Without bytes the
            path is opened: a local file or any address that fsspec knows.
        name: What to call an image that has no path, such as "row 3".

    Raises:
        UnreadableImageError: The file is missing, empty, truncated, no image, or too large (a decompression bomb).
    """
    try:
        if isinstance(image, Image.Image):
            return _to_rgb(ImageOps.exif_transpose(image))
        name = image["path"] or name
        with Image.open(_open(image)) as opened:
            return _to_rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"{name}: not an image file, or of no known format", name) from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything, struct.error included
        raise UnreadableImageError(f"{name}: {type(error).__name__}: {error}", name) from error


def _open(image: dict):
    if image["bytes"] is not None:
        return io.BytesIO(image["bytes"])
    if "://" in image["path"]:
        with fsspec.open(image["path"]) as file:
            return io.BytesIO(file.read())
    return image["path"]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        pixels = np.asarray(image, dtype=np.float64) / 257  # 65535 / 255
        return _gray(pixels)
    if image.mode == "F":
        pixels = np.nan_to_num(np.asarray(image))
        return _gray(pixels * 255 if pixels.max() <= 1 else pixels)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def _gray(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).convert("RGB")
