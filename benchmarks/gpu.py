"""On a GPU: whole runs, kNN, and training steps beside their peers.

    pip install -r benchmarks/requirements.txt
    python benchmarks/gpu.py [--minutes 25] [--workers 16]
    python benchmarks/gpu.py --toy

Runs train in bf16, compiled, on batches of 256 images from 224-pixel JPEGs that are made for it, with and without
`--augment_on_device`: milliseconds an image, the share of the time that the device waits for images, and memory, of every ten
steps after the first thirty. The peer of Barlow Twins with a ViT-S/16 is what stable-pretraining publishes for an H200, 871 images
a second. kNN classifies features on the device. The steps are those of steps.py at 224 pixels, both sides compiled and in bf16, by
the clock; they come last and end when the minutes are over. `--toy` runs all of it in small, on a CPU too, as a check of
the script: it writes no result.
"""

import json
import os
import tempfile
import time
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


def main():
    parser = harness.argument_parser(__doc__, rounds=20)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--workers", type=int, default=16, help="of the loader")
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    if not (args.toy or torch.cuda.is_available()):
        parser.error("there is no GPU here: --toy checks the script without one")
    end = time.monotonic() + 60 * args.minutes
    torch.set_float32_matmul_precision("high")  # as in a run
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = ssl_hub.load_image_dataset(make_images(Path(folder), args.toy))
        for name, (recipe, backbone) in RUNS.items():
            for on_device in (False, True):
                rows += measure_run(name, recipe, backbone, dataset, on_device, args)
    rows.append(measure_knn(args.toy))
    for algorithm in steps.ALGORITHMS:
        if not args.toy:
            harness.save("gpu", __doc__, rows)
        if time.monotonic() > end:
            print(f"the time is over: no steps of {algorithm} and what follows")
            break
        rows += measure_steps(algorithm, args)
    else:
        if not args.toy:
            harness.save("gpu", __doc__, rows)


def make_images(folder: Path, toy: bool) -> Path:
    """As many files as an epoch needs not to end every moment; the same few images over and over."""
    number, copies = (64, 1) if toy else (1024, 32)
    whole_run.make_images(folder, number, size=224)
    for path in list(folder.iterdir()):
        for copy in range(1, copies):
            os.link(path, path.with_stem(f"{path.stem}_{copy}"))
    return folder


def measure_run(name: str, recipe: str, backbone: dict, dataset, on_device: bool, args) -> list[dict]:
    overrides = {f"backbone_config.{key}": value for key, value in backbone.items()}
    if args.toy:
        small = {"num_hidden_layers": 2} if backbone else {"depths": "[1,1,1,1]", "hidden_sizes": "[64,128,256,512]"}
        overrides |= {f"backbone_config.{key}": value for key, value in small.items()} | {
            "projection_hidden_size": 64,
            "projection_size": 64,
        }
    has_gpu = torch.cuda.is_available()
    steps_a_line, skipped, lines = (1, 1, 2) if args.toy else (10, 30, 10)
    with tempfile.TemporaryDirectory() as output:
        if has_gpu:
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
                torch_compile=has_gpu,
                dataloader_num_workers=0 if args.toy else args.workers,
                augment_on_device=on_device,
            ),
            dataset,
        )
        trainer.train()
        records = [json.loads(line) for line in Path(output, "out", "metrics.jsonl").read_text().splitlines()]
    kept = [record for record in records if "images_per_second" in record and record["step"] > skipped]
    label = f"{name}{', --augment_on_device' if on_device else ''}"
    milliseconds = [1e3 / record["images_per_second"] for record in kept]
    peer = [1e3 / PUBLISHED[name]] * len(kept) if name in PUBLISHED else None
    waits = [100 * record["data_wait_share"] for record in kept]
    memory = [max(record["peak_memory_mib"] for record in kept)]
    return [
        harness.row(f"{label}: an image", "ms", milliseconds, peer, "stable-pretraining, published, H200"),
        harness.row(f"{label}: waiting for images", "%", waits, target=5, target_of="ours"),
        harness.row(f"{label}: memory", "MiB", memory),
    ]


def measure_knn(toy: bool) -> dict:
    num_train, num_test, dimensions = (2_000, 200, 64) if toy else (1_280_000, 50_000, 2048)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    features = torch.randn(num_train + num_test, dimensions, device=device)
    labels = torch.randint(1000, (num_train + num_test,), device=device)
    train, test = (features[:num_train], labels[:num_train]), (features[num_train:], labels[num_train:])

    def seconds() -> float:
        start = time.perf_counter()
        knn_accuracy(*train, *test, k=20)  # a number, so that nothing is left to wait for
        return time.perf_counter() - start

    times = harness.in_turn({"ours": seconds}, rounds=3)
    return harness.row(f"kNN, {num_train:,} x {num_test:,} x {dimensions}", "s", times["ours"])


def measure_steps(algorithm: str, args) -> list[dict]:
    """Compiled and in bf16 on a GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = steps.Sizes(image_size=224, batch_size=128, vit_layers=12, head_width=4096)
    if args.toy:
        sizes = steps.Sizes(image_size=64, batch_size=4, resnet="resnet18", vit_layers=2, head_width=64)
    sides = {"ours": "ours" if algorithm in steps.VITS else "ours, channels last", "peer": "peer"}
    peer_name = "transformers" if algorithm == "MAE" else "lightly"
    milliseconds, memory = {}, {}
    for name, side in sides.items():
        settings = {"dtype": torch.bfloat16, "compiled": True} if device.type == "cuda" else {}
        step = steps.build_step(algorithm, side, sizes, device, **settings)
        for _ in range(3):  # compiles
            step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            memory[name] = [(torch.cuda.max_memory_allocated() - before) / 2**20]
        milliseconds[name] = lambda step=step: wall_milliseconds(step)
    times = harness.in_turn(milliseconds, 2 if args.toy else args.rounds)
    rows = [harness.row(algorithm, "ms", times["ours"], times["peer"], peer_name, target=0.87)]
    if memory:
        rows.append(harness.row(f"{algorithm}, memory of a step", "MiB", memory["ours"], memory["peer"], peer_name))
    return rows


def wall_milliseconds(step) -> float:
    start = time.perf_counter()
    step()  # waits for the device
    return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
