"""Rendering the views of an image beside lightly's transforms.

    pip install -r benchmarks/requirements.txt
    python benchmarks/views.py [--rounds 5]

From JPEG bytes to tensors: both sides decode an image once and render all its views, 20 images a measurement, in turn on one
thread, in the processor's time. The images are the two photos that come with scikit-learn, 640 x 427 pixels, and the same at
320 x 214.
"""

import io

import harness

harness.use_one_thread()

import torch  # noqa: E402
from lightly.transforms import (  # noqa: E402
    BYOLTransform,
    DenseCLTransform,
    MAETransform,
    MoCoV2Transform,
    SimCLRTransform,
    SwaVTransform,
)
from PIL import Image  # noqa: E402
from sklearn.datasets import load_sample_images  # noqa: E402

from ssl_hub.data.loading import ViewDataset  # noqa: E402
from ssl_hub.data.views import build_views  # noqa: E402
from ssl_hub.training.recipes import load_recipe  # noqa: E402

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
    args = harness.argument_parser(__doc__, rounds=5).parse_args()
    torch.set_num_threads(1)
    rows = []
    for width in (640, 320):
        files = [encode(pixels, width) for pixels in load_sample_images().images]
        for name, peer_class in PEERS.items():
            times = harness.in_turn(build_sides(name, peer_class(), files), args.rounds)
            target = 1 / 1.8 if name.startswith("mae") else 0.5
            label = f"{name.split('-')[0]}, {width} pixels"
            rows.append(
                harness.row(label, "ms", times["ssl_hub"], times["lightly"], "lightly", target=round(target, 3))
            )
    harness.save("views", __doc__, rows)


def build_sides(recipe: str, peer, files: list[bytes]) -> dict:
    """Milliseconds an image, all of its views."""
    rows = [{"image": {"bytes": file, "path": None}} for file in files]
    dataset = ViewDataset(rows, build_views(load_recipe(recipe).views, 224), seed=0)

    def ours() -> None:
        dataset.__getitems__([(i, i % 2) for i in range(IMAGES_A_ROUND)])

    def theirs() -> None:
        for i in range(IMAGES_A_ROUND):
            peer(Image.open(io.BytesIO(files[i % 2])).convert("RGB"))

    return {
        name: lambda render=render: 1e3 * harness.cpu_seconds(render) / IMAGES_A_ROUND
        for name, render in (("ssl_hub", ours), ("lightly", theirs))
    }


def encode(pixels, width: int) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((width, width), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


if __name__ == "__main__":
    main()
