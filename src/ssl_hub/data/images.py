"""Decoding image files of any kind to 8-bit RGB."""

import io
import math
import os
import stat
import urllib.request
import warnings
from contextlib import contextmanager

import cv2
import fsspec
import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from ssl_hub.printing import printable

# The formats that are opened, as Pillow names them, and the suffixes of their files. Pillow has decoders that start other
# programs, Ghostscript for one, and a file's content says which decoder reads it, not its name.
IMAGE_FORMATS = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2",),
    "PNG": (".png",),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
# How much smaller a JPEG can be decoded, and what OpenCV calls it.
_JPEG_SCALES = (
    (8, cv2.IMREAD_REDUCED_COLOR_8),
    (4, cv2.IMREAD_REDUCED_COLOR_4),
    (2, cv2.IMREAD_REDUCED_COLOR_2),
)
# Longest over shortest edge: resized to a usual height, a strip that is longer would take gigabytes.
MAX_ASPECT = 100
# Of a file on the network: seconds without an answer, and bytes.
_TIMEOUT = 10
_MAX_BYTES = 2**28


class UnreadableImageError(ValueError):
    """An image cannot be decoded; `name` is its file or row."""

    def __init__(self, message: str, name: str = ""):
        super().__init__(message)
        self.name = name


def decode_image(image: "dict | Image.Image", name: str = "image", *, remote: bool = False) -> Image.Image:
    """Decode an image to RGB, 8 bits a channel, upright.

    The EXIF orientation is applied and transparency is composited on white. 16-bit pixels are scaled to 8 bits, not
    clipped; float pixels are read as 0..1, or as 0..255 when any of them is above 1.

    Args:
        image: A PIL image, or the `{"bytes", "path"}` of a `datasets.Image(decode=False)` column. Without bytes the
            path is opened, a local file.
        name: What to call an image that has no path, such as "row 3".
        remote: Whether the path may also be an address, on the Hub (`hf://`, also of a file in an archive there) or
            `http(s)://`.

    Raises:
        UnreadableImageError: The file is missing, empty, truncated, of none of the `IMAGE_FORMATS`, larger than
            `PIL.Image.MAX_IMAGE_PIXELS` or longer than `MAX_ASPECT` times its width.
    """
    return Image.fromarray(EncodedImage(image, name, remote=remote).pixels())


class EncodedImage:
    """An image whose size is known before it is decoded, if it is a JPEG file; others are decoded at once.

    Args, Raises: As `decode_image`.

    Attributes:
        height, width: Of the upright image, in pixels.
    """

    def __init__(self, image: "dict | Image.Image", name: str = "image", *, remote: bool = False):
        self.name = name
        with self._errors():
            if isinstance(image, Image.Image):
                _check_size(image)
                self._image = _to_upright_rgb(image)
            else:
                image = image or {"bytes": None, "path": None}  # a row may be null
                self.name = printable(image["path"] or name).replace("\n", r"\n")
                self._image = _open(image, remote)
                if not isinstance(self._image, JpegImageFile):  # whose size may change when it is decoded
                    with self._image as opened:
                        self._image = _to_upright_rgb(opened)
            self.width, self.height = self._image.size
            if self._image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):  # a JPEG lying on its side
                self.width, self.height = self.height, self.width

    def pixels(self, resolution: float = 1.0) -> np.ndarray:
        """Decode the image as `decode_image` does, to uint8 `(H, W, 3)`.

        Args:
            resolution: The share of height and width that is enough. A JPEG file comes at 1/2, 1/4 or 1/8 of its size,
                rounded up, where that is not less; decoding it so takes a fraction of the time.
        """
        if not isinstance(self._image, JpegImageFile):
            return np.asarray(self._image)
        with self._errors(), self._image as opened:
            enough = [math.ceil(edge * min(resolution, 1)) for edge in opened.size]
            pixels = _decode_jpeg(opened, enough)
            if pixels is None:
                opened.draft(None, tuple(enough))
                pixels = np.asarray(_to_upright_rgb(opened))
            return pixels

    @contextmanager
    def _errors(self):
        try:
            yield
        except UnidentifiedImageError as error:
            raise UnreadableImageError(f"{self.name}: not an image file, or of no known format", self.name) from error
        except _RefusedError as error:
            raise UnreadableImageError(f"{self.name}: {error}", self.name) from error
        except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything, struct.error too
            message = f"{self.name}: {type(error).__name__}: {printable(error)}"
            raise UnreadableImageError(message, self.name) from error


class DecodedImage:
    """An image of `cache_images`, as an `EncodedImage`.

    Raises:
        UnreadableImageError: It could not be decoded.
    """

    def __init__(self, image: "torch.Tensor | str"):
        if isinstance(image, str):
            raise UnreadableImageError(f"{image} could not be decoded", image)
        self._image = image
        self.height, self.width = image.shape[:2]

    @property
    def is_elsewhere(self) -> bool:
        """Whether its pixels are not in this process."""
        return self._image.is_meta

    def pixels(self, resolution: float = 1.0) -> np.ndarray:
        return self._image.numpy()


class _RefusedError(Exception):
    """Says in words why an image is not decoded."""


def _open(image: dict, remote: bool) -> Image.Image:
    if image["bytes"] is not None:
        file = io.BytesIO(image["bytes"])
    elif not image["path"]:
        raise _RefusedError("neither bytes nor a path")
    elif "://" in image["path"]:
        file = _download(image["path"], remote)
    else:
        file = image["path"]
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise _RefusedError("no regular file")  # a pipe would be waited for, a device may never end
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # see _check_size
        opened = Image.open(file, formats=tuple(IMAGE_FORMATS))
    try:
        _check_size(opened)
    except _RefusedError:
        opened.close()
        raise
    return opened


def _download(address: str, remote: bool) -> io.BytesIO:
    if not remote:
        raise _RefusedError(
            "an address on the network, which is followed in datasets of the Hub only: download the file"
        )
    protocol = address.rpartition("::")[2].partition("://")[0]
    if protocol == "hf":
        opened = fsspec.open(address)  # huggingface_hub has time-outs of its own
    elif address.startswith(("http://", "https://")):
        opened = urllib.request.urlopen(address, timeout=_TIMEOUT)  # noqa: S310 - its protocol is checked
    else:
        raise _RefusedError("an address that begins with none of hf://, http:// and https://")
    with opened as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise _RefusedError(f"more than {_MAX_BYTES} bytes")
    return io.BytesIO(content)


def _check_size(image: Image.Image) -> None:
    """Looks at the size that the header says, before anything is decoded."""
    short, long = sorted(image.size)
    # Pillow itself refuses twice as many, and warns of these.
    if Image.MAX_IMAGE_PIXELS is not None and short * long > Image.MAX_IMAGE_PIXELS:
        raise _RefusedError(
            f"{image.width} x {image.height} pixels, more than the {Image.MAX_IMAGE_PIXELS} of PIL.Image.MAX_IMAGE_PIXELS"
        )
    if long > MAX_ASPECT * short:
        raise _RefusedError(f"{image.width} x {image.height} pixels, longer than {MAX_ASPECT} times its width")


def _decode_jpeg(opened: JpegImageFile, enough: list[int]) -> np.ndarray | None:
    """Decode by OpenCV, to the same pixels as Pillow in two thirds of its time; None for what Pillow should look at.

    Args:
        enough: The least width and height.
    """
    if opened.mode not in ("RGB", "L"):
        return None
    opened.fp.seek(0)
    content = opened.fp.read()
    if b"\xff\xd9" not in content[-32:]:  # the end of a JPEG: OpenCV may fill up one that is cut off
        return None
    scale = min(edge // least for edge, least in zip(opened.size, enough, strict=True))
    flag = next((flag for least, flag in _JPEG_SCALES if scale >= least), cv2.IMREAD_COLOR)
    return cv2.imdecode(np.frombuffer(content, np.uint8), flag & ~cv2.IMREAD_COLOR | cv2.IMREAD_COLOR_RGB)


def _to_upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.int32).clip(0, 65535)
        return _gray((pixels + 128) // 257)  # rounded; 257 is 65535 / 255
    if image.mode == "F":
        pixels = np.nan_to_num(np.asarray(image))
        return _gray((pixels * 255 if pixels.max() <= 1 else pixels).round().clip(0, 255))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def _gray(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
