"""A whole run on images of CIFAR-10's size.

    python benchmarks/whole_run.py [--images FOLDER] [--baseline COMMIT]

SimCLR by `simclr-resnet18-cifar10`, whose ResNet-18 is 4 channels wide, so that the data matters: views, loader, steps, log. The
folder is given, or made of crops of scikit-learn's photos, 32 x 32 JPEGs. A side is a process of its own, one thread and no
workers; the milliseconds an image are the processor's, the difference between a long and a short run, without start-up and
what is done once. The sides take turns. Images a second on n cores that have nothing else to do are up to 1000 n / these.
"earlier sources" are those of a commit, `--baseline`; 8614b10 is the one before views and loader were made quicker.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import harness

harness.use_one_thread()

SIDES = {
    "as it comes": {},
    "--cache_images memory": {"cache_images": "memory"},
    "--augment_on_device, on the CPU": {"augment_on_device": True},
}
BATCH_SIZE, SHORT, LONG = 64, 4, 36
WIDTH = "backbone_config.embedding_size=4,backbone_config.hidden_sizes=[4,8,16,32],projection_hidden_size=64"


def main():
    parser = harness.argument_parser(__doc__, rounds=3)
    parser.add_argument("--images", type=Path, help="a folder of JPEG files; made if not given")
    parser.add_argument("--baseline", default="8614b10", help="a commit of ssl_hub to compare with; '' for none")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as tree:
        folder = args.images or make_images(Path(made))
        sides = {name: partial(harness.apart, measure, folder, options, None) for name, options in SIDES.items()}
        if args.baseline:
            extract_sources(args.baseline, Path(tree))
            sides["earlier sources"] = partial(harness.apart, measure, folder, {}, Path(tree, "src"))
        times = harness.in_turn(sides, args.rounds, warm_up=0)
    peer, target = ("earlier sources", 0.333) if args.baseline else ("as it comes", None)
    rows = [harness.row(name, "ms", times[name], times[peer], peer, target=target) for name in SIDES if name != peer]
    harness.save("whole_run", __doc__, rows)


def extract_sources(commit: str, folder: Path) -> None:
    archive = folder / "sources.tar"
    command = ["git", "archive", f"--output={archive}", commit, "src"]
    subprocess.run(command, cwd=harness.RESULTS.parents[1], check=True)  # noqa: S603
    shutil.unpack_archive(archive, folder, filter="data")


def make_images(folder: Path, number: int = 2048, size: int = 32) -> Path:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    generator, photos = np.random.default_rng(0), load_sample_images().images
    for index in range(number):
        top, left = generator.integers(0, 427 - 224), generator.integers(0, 640 - 224)
        crop = Image.fromarray(photos[index % 2][top : top + 224, left : left + 224])
        crop.resize((size, size)).save(folder / f"{index:05}.jpg", quality=95)
    return folder


def measure(folder: Path, options: dict, sources: Path | None) -> float:
    """Milliseconds an image of a run with some arguments, by other sources if they are given."""
    if sources is not None:
        os.environ["PYTHONPATH"] = str(sources)  # for what the run starts
        sys.path.insert(0, str(sources))
    import ssl_hub

    if sources is not None and not Path(ssl_hub.__file__).is_relative_to(sources):
        raise RuntimeError(f"ssl_hub was imported from {ssl_hub.__file__}, not from {sources}")
    dataset = ssl_hub.load_image_dataset(folder)

    def run(steps: int) -> float:
        with tempfile.TemporaryDirectory() as output:
            return harness.cpu_seconds(
                lambda: ssl_hub.pretrain(
                    "simclr-resnet18-cifar10",
                    dataset,
                    output_dir=Path(output, "out"),
                    config_overrides=WIDTH,
                    per_device_train_batch_size=BATCH_SIZE,
                    max_train_steps=steps,
                    checkpointing_steps=str(LONG),
                    dataloader_num_workers=0,
                    evaluation="[]",
                    eval_steps=None,
                    eval_split=None,
                    **options,
                )
            )

    run(SHORT)  # imports and first allocations
    short, long = run(SHORT), run(LONG)
    return 1e3 * (long - short) / ((LONG - SHORT) * BATCH_SIZE)


if __name__ == "__main__":
    main()
