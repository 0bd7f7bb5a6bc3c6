"""What is in a dataset of images, as far as it decides how to train on them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from ssl_hub.data.datasets import is_remote
from ssl_hub.data.images import EncodedImage, UnreadableImageError
from ssl_hub.printing import name_some

# Images at most that are decoded, and files at most that are compared.
_NUM_DECODED, _NUM_COMPARED = 2000, 50_000


@dataclass(frozen=True)
class ImageSurvey:
    """What was found.

    Args:
        count: of all images.
        num_classes: None without labels.
        num_decoded: a random sample, from which the next ones are.
        unreadable: names of those that cannot be read.
        short_sides: `(N,)`, in pixels.
        num_gray: how many have no colour.
        num_compared: images whose files were compared.
        num_copies: how many of them are a copy, byte for byte, of another one.
    """

    count: int
    num_classes: int | None
    num_decoded: int
    unreadable: tuple[str, ...]
    short_sides: np.ndarray
    num_gray: int
    num_compared: int
    num_copies: int

    @property
    def side(self) -> int:
        """The median of the short sides."""
        return int(np.median(self.short_sides))

    def __str__(self) -> str:
        found = [f"{self.count:,}" + (f" in {self.num_classes} classes" if self.num_classes else ", no labels")]
        low, high = self.short_sides.min(), self.short_sides.max()
        varying = "" if low == high else f" in the middle, from {low} to {high}"
        found.append(f"short side {self.side} pixels{varying}")
        if self.num_gray == len(self.short_sides):
            found.append("gray")
        else:
            found.append("colour" + (f", {self.num_gray / len(self.short_sides):.0%} gray" if self.num_gray else ""))
        return "; ".join(found)

    def warnings(self) -> list[str]:
        """What is wrong with the images, a line each."""
        lines = []
        if self.num_copies:
            among = "" if self.num_compared == self.count else f" of {self.num_compared:,} that were compared"
            lines.append(
                f"{self.num_copies:,}{among}: exact copies of other images, which count twice, and may be in both parts when "
                "some are held out"
            )
        if self.unreadable:
            lines.append(
                f"{len(self.unreadable):,} of {self.num_decoded:,} that were looked at: cannot be read and are skipped "
                f"({name_some(self.unreadable, limit=3)})"
            )
        return lines


def survey_images(dataset: datasets.Dataset) -> ImageSurvey:
    """Looks at the images of a dataset that `load_image_dataset` returned, at a fixed random sample where there are many.

    Raises:
        UnreadableImageError: None of the sample can be read.
    """
    order, remote = np.random.default_rng(0).permutation(len(dataset)), is_remote(dataset)
    sides, gray, unreadable = [], 0, []
    images = dataset.select_columns("image")
    for index in np.sort(order[:_NUM_DECODED]).tolist():
        try:
            encoded = EncodedImage(images[index]["image"], f"row {index}", remote=remote)
            pixels = encoded.pixels(resolution=1 / 8)  # the whole file is read all the same
        except UnreadableImageError as error:
            unreadable.append(error.name)
        else:
            sides.append((encoded.height, encoded.width))
            gray += bool((pixels == pixels[..., :1]).all())
    if not sides:
        raise UnreadableImageError(f"none of {len(unreadable)} images can be read: {name_some(unreadable)}")
    compared = np.sort(order[:_NUM_COMPARED])
    digests = [_digest(row["image"]) for row in images.select(compared)]
    known = [digest for digest in digests if digest is not None]
    return ImageSurvey(
        count=len(dataset),
        num_classes=_count_classes(dataset),
        num_decoded=min(len(dataset), _NUM_DECODED),
        unreadable=tuple(unreadable),
        short_sides=np.min(sides, axis=1),
        num_gray=gray,
        num_compared=len(known),
        num_copies=len(known) - len(set(known)),
    )


def _digest(image: dict | None) -> bytes | None:
    """Of an image's file; None where it cannot be had, or lies on the network."""
    try:
        content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
    except (OSError, TypeError):
        return None
    return hashlib.blake2b(content, digest_size=16).digest()


def _count_classes(dataset: datasets.Dataset) -> int | None:
    if "label" not in dataset.column_names:
        return None
    return len(set(dataset["label"]))
