"""Images made of coloured rectangles, with boxes and masks: detection and segmentation without a download."""

import numpy as np
import torch
from PIL import Image

NUM_CLASSES = 3  # red, green and blue ones


class RectangleImages(torch.utils.data.Dataset):
    """Noise with one to three rectangles, each of the colour of its class; the same for the same seed and index.

    `self[i]` has the columns that datasets of the Hub have: `image`, RGB; `objects` with `bbox`, left, top, width and
    height in pixels, and `category`, from 0; `annotation`, an image of the class of each pixel, 0 for the background.

    Args:
        count: number of images.
        size: of their sides, in pixels.
    """

    def __init__(self, count: int, size: int, seed: int = 0):
        self.count, self.size, self.seed = count, size, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.count:
            raise IndexError(f"there are {self.count} images; got the index {index}")
        generator = np.random.default_rng([self.seed, index])
        pixels = generator.integers(0, 100, (self.size, self.size, 3), dtype=np.uint8)
        classes = np.zeros((self.size, self.size), dtype=np.uint8)
        objects: dict[str, list] = {"bbox": [], "category": []}
        for _ in range(generator.integers(1, 4)):
            label = int(generator.integers(NUM_CLASSES))
            width, height = generator.integers(self.size // 4, self.size // 2, 2).tolist()
            left, top = generator.integers(0, [self.size - width, self.size - height]).tolist()
            inside = np.s_[top : top + height, left : left + width]
            pixels[inside] = 40
            pixels[inside][..., label] = 220
            classes[inside] = label + 1
            objects["bbox"].append([left, top, width, height])
            objects["category"].append(label)
        return {"image": Image.fromarray(pixels), "objects": objects, "annotation": Image.fromarray(classes)}
