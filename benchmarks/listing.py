"""Listing a folder of images beside torchvision's ImageFolder.

    python benchmarks/listing.py [--num_files 100000]

A folder of 100 class folders with small JPEG files, made for it. Each side runs in a process of its own, in turn, in the
processor's time: from the path to a dataset whose rows know their file and class. Memory is what is held at most beyond that
before.
"""

import io
import tempfile
from pathlib import Path

import harness
from PIL import Image

harness.use_one_thread()


def main():
    parser = harness.argument_parser(__doc__, rounds=3)
    parser.add_argument("--num_files", type=int, default=100_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder), args.num_files)
        sides = {name: lambda name=name: harness.apart(measure, name, folder) for name in LISTERS}
        results = harness.in_turn(sides, args.rounds)
    if {number for values in results.values() for _, _, number in values} != {args.num_files}:
        raise RuntimeError("the sides find different numbers of files")
    rows = []
    for column, (what, unit) in enumerate((("time", "s"), ("memory", "MiB"))):
        ours, theirs = ([value[column] for value in results[name]] for name in LISTERS)
        target = 1.5 if what == "time" else None
        rows.append(harness.row(f"{args.num_files:,} files, {what}", unit, ours, theirs, "torchvision", target=target))
    harness.save("listing", __doc__, rows)


def make_files(folder: Path, num_files: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    for number in range(100):
        class_folder = folder / f"class_{number:02}"
        class_folder.mkdir()
        for index in range(number, num_files, 100):
            (class_folder / f"image_{index:07}.jpg").write_bytes(file.getvalue())


def measure(name: str, folder: str) -> tuple[float, float, int]:
    """Seconds, MiB, and how many files were found."""
    with tempfile.TemporaryDirectory() as small:
        make_files(Path(small), 100)
        LISTERS[name](small)  # loads the libraries
    found = []
    seconds = 0.0

    def run() -> None:
        nonlocal seconds
        seconds = harness.cpu_seconds(lambda: found.append(LISTERS[name](folder)))

    memory = harness.added_memory(run)
    return seconds, memory, len(found[0])


def ssl_hub(folder: str):
    from ssl_hub import load_image_dataset

    return load_image_dataset(folder)


def torchvision(folder: str):
    from torchvision.datasets import ImageFolder

    return ImageFolder(folder)


LISTERS = {"ssl_hub": ssl_hub, "torchvision": torchvision}

if __name__ == "__main__":
    main()
