"""A whole run on images of CIFAR-10's size.

    python benchmarks/whole_run.py [--images FOLDER] [--baseline COMMIT]

SimCLR by `simclr-resnet18-cifar10`, whose ResNet-18 is 4 channels wide, so that the data matters: views, loader, steps, log. The
folder is given, or made of crops of scikit-learn's photos, 32 x 32 JPEGs. A side is a process of its own, one thread and no
workers; the milliseconds an image are the processor's, the difference between a long and a short run, without start-up and
what is done once. The sides take turns. Images a second on n cores that have nothing else to do are up to 1000 n / these.
"steps alone" trains on one batch over and over: no run can take less. "data alone" is what the loader takes.
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
RECIPE = "simclr-resnet18-cifar10"
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
        sides["steps alone"] = partial(harness.apart, measure_steps, folder)
        sides["data alone"] = partial(harness.apart, measure_data, folder, None)
        if args.baseline:
            extract_sources(args.baseline, Path(tree))
            sides["earlier sources"] = partial(harness.apart, measure, folder, {}, Path(tree, "src"))
            sides["data alone, earlier"] = partial(harness.apart, measure_data, folder, Path(tree, "src"))
        times = harness.in_turn(sides, args.rounds, warm_up=0)
    peer, target = ("earlier sources", 0.333) if args.baseline else ("as it comes", None)
    data_peer = "data alone, earlier" if args.baseline else "data alone"
    rows = [harness.row(name, "ms", times[name], times[peer], peer, target=target) for name in SIDES if name != peer]
    rows += [
        harness.row("data alone", "ms", times["data alone"], times[data_peer], peer, target=target),
        harness.row("steps alone", "ms", times["steps alone"], times[peer], peer),
        harness.row("as it comes, beside its steps", "ms", times["as it comes"], times["steps alone"], "steps alone"),
    ]
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
    ssl_hub = import_sources(sources)
    dataset = ssl_hub.load_image_dataset(folder)

    def run(steps: int) -> float:
        with tempfile.TemporaryDirectory() as output:
            return harness.cpu_seconds(
                lambda: ssl_hub.pretrain(
                    RECIPE, dataset, **arguments(Path(output, "out")), max_train_steps=steps, **options
                )
            )

    run(SHORT)  # imports and first allocations
    short, long = run(SHORT), run(LONG)
    return 1e3 * (long - short) / ((LONG - SHORT) * BATCH_SIZE)


def import_sources(sources: Path | None):
    if sources is not None:
        os.environ["PYTHONPATH"] = str(sources)  # for what the run starts
        sys.path.insert(0, str(sources))
    import ssl_hub

    if sources is not None and not Path(ssl_hub.__file__).is_relative_to(sources):
        raise RuntimeError(f"ssl_hub was imported from {ssl_hub.__file__}, not from {sources}")
    return ssl_hub


def measure_steps(folder: Path) -> float:
    """Milliseconds an image of the same steps, on one batch."""
    with tempfile.TemporaryDirectory() as output:
        trainer = new_trainer(folder, Path(output, "out"))
        batch = next(iter(trainer.loader))
        trainer.model.train()

        def run(steps: int) -> float:
            return harness.cpu_seconds(lambda: [trainer.train_step([dict(batch)]) for _ in range(steps)])

        run(SHORT)
        return 1e3 * run(LONG - SHORT) / ((LONG - SHORT) * BATCH_SIZE)


def measure_data(folder: Path, sources: Path | None) -> float:
    """Milliseconds an image of an epoch of the loader."""
    import_sources(sources)
    with tempfile.TemporaryDirectory() as output:
        loader = new_trainer(folder, Path(output, "out")).loader
        next(iter(loader))
        sizes: list[int] = []
        seconds = harness.cpu_seconds(lambda: sizes.extend(len(batch["indices"]) for batch in loader))
        return 1e3 * seconds / sum(sizes)


def new_trainer(folder: Path, output_dir: Path):
    import ssl_hub
    from ssl_hub.training.arguments import build_arguments
    from ssl_hub.training.pretraining import build_trainer

    made = build_arguments(RECIPE, dataset_name="in memory", max_train_steps=LONG, **arguments(output_dir))
    return build_trainer(*made, ssl_hub.load_image_dataset(folder))


def arguments(output_dir: Path) -> dict:
    return {
        "output_dir": str(output_dir),
        "config_overrides": WIDTH,
        "per_device_train_batch_size": BATCH_SIZE,
        "checkpointing_steps": str(LONG),
        "dataloader_num_workers": 0,
        "evaluation": "[]",
        "eval_steps": None,
        "eval_split": None,
    }


if __name__ == "__main__":
    main()
