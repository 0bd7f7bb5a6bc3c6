"""On a GPU: training steps beside their peers, whole runs, and kNN.

    pip install -r benchmarks/requirements.txt
    python benchmarks/gpu.py [--workers 16] [--compiled MAE SimCLR] [--jobs 8]
    python benchmarks/gpu.py --toy

The steps are those of steps.py in bf16, batches of 64 at 224 pixels, by the clock: as they come, and both sides compiled. Runs train
in bf16 on batches of 256 images from 224-pixel JPEGs that are made for it: milliseconds an image, the share of the time in which
the GPU has no images to work on, and memory, of every ten steps after the first twenty. The peer of Barlow Twins with a
ViT-S/16 is what stable-pretraining publishes for an H200, 871 images a second. kNN classifies features on the GPU. `--toy` runs
all of it in small, on a CPU too, as a check of the script: it writes no result.
"""

import gc
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import harness
import steps
import torch
import whole_run

import ssl_hub
from ssl_hub.evaluation.knn import knn_accuracy
from ssl_hub.training.arguments import build_arguments
from ssl_hub.training.pretraining import build_trainer

VIT_SMALL = {"model_type": "vit", "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
RUNS = {
    "SimCLR ResNet-50": ("simclr-resnet50-200e", {}),
    "Barlow Twins ViT-S/16": ("barlowtwins-resnet50-300e", VIT_SMALL),
}
PUBLISHED = {"Barlow Twins ViT-S/16": 871}  # images a second
OPTIONS = {"": {}, ", --augment_on_device": {"augment_on_device": True}, ", --torch_compile": {"torch_compile": True}}
SIZES = steps.Sizes(image_size=224, batch_size=64, vit_layers=12, head_width=4096)
TOY_SIZES = steps.Sizes(image_size=64, batch_size=4, resnet="resnet18", vit_layers=2, head_width=64)


def main():
    parser = harness.argument_parser(__doc__, rounds=20)
    parser.add_argument("--workers", type=int, default=16, help="of the loader")
    parser.add_argument("--compiled", nargs="*", choices=steps.ALGORITHMS, default=steps.ALGORITHMS)
    parser.add_argument("--jobs", type=int, default=8, help="sides that are compiled at once, a process each")
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    if not (args.toy or torch.cuda.is_available()):
        parser.error("there is no GPU here: --toy checks the script without one")
    torch.set_float32_matmul_precision("high")  # as in a run
    rows: list[dict] = []
    for part in (measure_steps, measure_runs, measure_knn, measure_compiled_steps):
        for row in part(args):
            rows.append(row)
            if not args.toy:
                harness.save("gpu", __doc__, rows)


# Steps


def measure_steps(args) -> Iterator[dict]:
    for algorithm in steps.ALGORITHMS:
        yield from measure_algorithm(algorithm, args, compiled=False)


def measure_compiled_steps(args) -> Iterator[dict]:
    sides = [(algorithm, side, args.toy) for algorithm in args.compiled for side in ("ours", "peer")]
    with multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=1) as pool:
        pool.starmap(compile_side, sides, chunksize=1)  # what was compiled is found again on disk
    for algorithm in args.compiled:
        yield from measure_algorithm(algorithm, args, compiled=True)


def compile_side(algorithm: str, side: str, toy: bool) -> None:
    torch.set_float32_matmul_precision("high")
    build_side(algorithm, side, toy, compiled=True)()


def build_side(algorithm: str, side: str, toy: bool, compiled: bool):
    if side == "ours" and algorithm not in steps.VITS:
        side = "ours, channels last"
    if not torch.cuda.is_available():
        return steps.build_step(algorithm, side, TOY_SIZES)
    device, sizes = torch.device("cuda"), TOY_SIZES if toy else SIZES
    return steps.build_step(algorithm, side, sizes, device, torch.bfloat16, compiled)


def measure_algorithm(algorithm: str, args, compiled: bool) -> list[dict]:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    sides = {side: build_side(algorithm, side, args.toy, compiled) for side in ("ours", "peer")}
    runs = {side: lambda step=step: _wall_milliseconds(step) for side, step in sides.items()}
    times = harness.in_turn(runs, rounds=2 if args.toy else args.rounds, warm_up=3)
    peer_name = "transformers" if algorithm == "MAE" else "lightly"
    name = f"{algorithm}, compiled" if compiled else algorithm
    rows = [harness.row(name, "ms", times["ours"], times["peer"], peer_name, target=0.87)]
    if torch.cuda.is_available():
        ours, peer = ([_step_memory(step)] for step in sides.values())
        rows.append(harness.row(f"{name}: memory", "MiB", ours, peer, peer_name))
    return rows


def _wall_milliseconds(step) -> float:
    start = time.perf_counter()
    step()  # waits for the device
    return 1e3 * (time.perf_counter() - start)


def _step_memory(step) -> float:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


# Runs


def measure_runs(args) -> Iterator[dict]:
    with tempfile.TemporaryDirectory() as folder:
        dataset = ssl_hub.load_image_dataset(make_images(Path(folder), args.toy))
        for label, options in OPTIONS.items():
            for name, (recipe, backbone) in RUNS.items():
                yield from measure_run(f"{name}{label}", recipe, backbone, dataset, options, PUBLISHED.get(name), args)


def make_images(folder: Path, toy: bool) -> Path:
    """As many files as an epoch needs not to end every moment; the same few images over and over."""
    number, copies = (64, 1) if toy else (1024, 32)
    whole_run.make_images(folder, number, size=224)
    for path in list(folder.iterdir()):
        for copy in range(1, copies):
            os.link(path, path.with_stem(f"{path.stem}_{copy}"))
    return folder


def measure_run(
    name: str, recipe: str, backbone: dict, dataset, options: dict, published: float | None, args
) -> list[dict]:
    overrides = {f"backbone_config.{key}": value for key, value in backbone.items()}
    if args.toy:
        small = {"num_hidden_layers": 2} if backbone else {"depths": "[1,1,1,1]", "hidden_sizes": "[64,128,256,512]"}
        overrides |= {f"backbone_config.{key}": value for key, value in small.items()} | {
            "projection_hidden_size": 64,
            "projection_size": 64,
        }
    has_gpu = torch.cuda.is_available()
    steps_a_line, skipped, lines = (1, 1, 2) if args.toy else (10, 20, 6)
    with tempfile.TemporaryDirectory() as output:
        if has_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        trainer = build_trainer(
            *build_arguments(
                recipe,
                dataset_name="in memory",
                output_dir=str(Path(output, "out")),
                config_overrides=",".join(f"{key}={value}" for key, value in overrides.items()) or None,
                per_device_train_batch_size=4 if args.toy else 256,
                max_train_steps=skipped + lines * steps_a_line,
                warmup_steps=0,
                logging_steps=steps_a_line,
                checkpointing_steps="1000000",
                evaluation="[]",
                mixed_precision="bf16" if has_gpu else "no",
                dataloader_num_workers=0 if args.toy else args.workers,
                **(options if has_gpu or "torch_compile" not in options else {}),
            ),
            dataset,
        )
        trainer.train()
        records = [json.loads(line) for line in Path(output, "out", "metrics.jsonl").read_text().splitlines()]
    kept = [record for record in records if "images_per_second" in record and record["step"] > skipped]
    milliseconds = [1e3 / record["images_per_second"] for record in kept]
    peer = [1e3 / published] * len(kept) if published else None
    waits = [100 * record["data_wait_share"] for record in kept]
    memory = [max(record["peak_memory_mib"] for record in kept)]
    return [
        harness.row(f"{name}: an image", "ms", milliseconds, peer, "stable-pretraining, published, H200"),
        harness.row(f"{name}: waiting for images", "%", waits, target=5, target_of="ours"),
        harness.row(f"{name}: memory", "MiB", memory),
    ]


# kNN


def measure_knn(args) -> list[dict]:
    num_train, num_test, dimensions = (2_000, 200, 64) if args.toy else (1_280_000, 50_000, 2048)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    features = torch.randn(num_train + num_test, dimensions, device=device)
    labels = torch.randint(1000, (num_train + num_test,), device=device)
    train, test = (features[:num_train], labels[:num_train]), (features[num_train:], labels[num_train:])

    def seconds() -> float:
        start = time.perf_counter()
        knn_accuracy(*train, *test, k=20)  # a number, so that nothing is left to wait for
        return time.perf_counter() - start

    times = harness.in_turn({"ours": seconds}, rounds=3)
    return [harness.row(f"kNN, {num_train:,} x {num_test:,} x {dimensions}", "s", times["ours"])]


if __name__ == "__main__":
    main()
