"""Views a second and core beside lightly's transforms of the same recipes, from JPEG bytes to tensors.

    pip install -r benchmarks/requirements.txt
    python benchmarks/views.py [--repeats 5]

The images are the two photos that come with scikit-learn, 640 x 427 pixels, and the same at 320 x 214. Both sides decode
an image once and render all its views on one core, a batch at a time, in turn; medians are printed, with their range.
"""

import argparse
import io
import statistics
import time

import torch
from lightly.transforms import (
    BYOLTransform,
    DenseCLTransform,
    MAETransform,
    MoCoV2Transform,
    SimCLRTransform,
    SwaVTransform,
)
from PIL import Image
from sklearn.datasets import load_sample_images

from ssl_hub.data.loading import ViewDataset
from ssl_hub.data.views import build_views
from ssl_hub.training.recipes import load_recipe

PEERS = {
    "simclr-resnet50-200e": SimCLRTransform,
    "mocov2-resnet50-200e": MoCoV2Transform,
    "byol-resnet50-200e": BYOLTransform,
    "barlowtwins-resnet50-300e": BYOLTransform,  # the views of both papers are the same
    "swav-resnet50-200e": SwaVTransform,
    "densecl-resnet50-200e": DenseCLTransform,
    "mae-vit-base-300e": MAETransform,
}
IMAGES_A_ROUND = 20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'recipe':28}{'image':>10}{'ssl_hub':>12}{'lightly':>12}   lightly / ssl_hub")
    for width in (640, 320):
        files = [encode(pixels, width) for pixels in load_sample_images().images]
        rows = [{"image": {"bytes": file, "path": None}} for file in files]
        for name, peer_class in PEERS.items():
            dataset, peer = ViewDataset(rows, build_views(load_recipe(name).views, 224), seed=0), peer_class()
            sides = (
                lambda dataset=dataset: dataset.__getitems__([(i, i % 2) for i in range(IMAGES_A_ROUND)]),
                lambda peer=peer, files=files: [
                    peer(Image.open(io.BytesIO(files[i % 2])).convert("RGB")) for i in range(IMAGES_A_ROUND)
                ],
            )
            pairs = [[seconds(side) for side in sides] for _ in range(args.repeats + 1)][1:]
            ratios = [theirs / ours for ours, theirs in pairs]
            mine, others = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
            print(
                f"{name:28}{width:>10}{mine:9.2f} ms{others:9.2f} ms{statistics.median(ratios):11.2f}"
                f" ({min(ratios):.2f} to {max(ratios):.2f})"
            )


def encode(pixels, width: int) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((width, width), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def seconds(render) -> float:
    """An image, all of its views."""
    start = time.perf_counter()
    render()
    return (time.perf_counter() - start) / IMAGES_A_ROUND


if __name__ == "__main__":
    main()
