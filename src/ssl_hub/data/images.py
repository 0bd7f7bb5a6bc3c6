"""Decoding image files of any kind to 8-bit RGB."""

import io
import math
from contextlib import contextmanager

import fsspec
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile


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
    return EncodedImage(image, name).decode()


class EncodedImage:
    """An image whose size is known before it is decoded, if it is a JPEG file; others are decoded at once.

    Args, Raises: As `decode_image`.

    Attributes:
        height, width: Of the upright image, in pixels.
    """

    def __init__(self, image: "dict | Image.Image", name: str = "image"):
        self.name = name
        with self._errors():
            if isinstance(image, Image.Image):
                self._image = _to_upright_rgb(image)
            else:
                self.name = image["path"] or name
                self._image = Image.open(_open(image))
                if not isinstance(self._image, JpegImageFile):  # whose size may change when it is decoded
                    with self._image as opened:
                        self._image = _to_upright_rgb(opened)
            self.width, self.height = self._image.size
            if self._image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):  # a JPEG lying on its side
                self.width, self.height = self.height, self.width

    def decode(self, resolution: float = 1.0) -> Image.Image:
        """Decode the image as `decode_image` does.

        Args:
            resolution: The share of height and width that is enough. A JPEG file comes at 1/2, 1/4 or 1/8 of its size,
                rounded up, where that is not less; decoding it so takes a fraction of the time.
        """
        if not isinstance(self._image, JpegImageFile):
            return self._image
        with self._errors(), self._image as opened:
            opened.draft(None, tuple(math.ceil(edge * min(resolution, 1)) for edge in opened.size))
            return _to_upright_rgb(opened)

    @contextmanager
    def _errors(self):
        try:
            yield
        except UnidentifiedImageError as error:
            raise UnreadableImageError(f"{self.name}: not an image file, or of no known format", self.name) from error
        except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything, struct.error too
            raise UnreadableImageError(f"{self.name}: {type(error).__name__}: {error}", self.name) from error


def _open(image: dict):
    if image["bytes"] is not None:
        return io.BytesIO(image["bytes"])
    if "://" in image["path"]:
        with fsspec.open(image["path"]) as file:
            return io.BytesIO(file.read())
    return image["path"]


def _to_upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
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
