"""What recipes reach on a folder of images when each has the same time: the tables of docs/small_data.md come from here.

    python benchmarks/small_data.py --train_dir DIR --validation_dir DIR --results FILE TRY [TRY ...]
    python benchmarks/small_data.py --results FILE

Both folders have class folders. A TRY is the name of a recipe, and after it arguments of `ssl-hub pretrain` that replace the
recipe's: "simclr-resnet18-small per_device_train_batch_size=64". Every try trains for as many steps as fit in --seconds,
which its first ones tell, and appends a line of JSON to the file. Without tries, the file is printed as a table.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import torch
from torch import nn

from ssl_hub import SSLTrainer, load_image_dataset
from ssl_hub.evaluation.base import LabelledFeatures
from ssl_hub.evaluation.evaluators import build_evaluators
from ssl_hub.evaluation.feature_models import pixel_baseline
from ssl_hub.evaluation.features import extract_dataset
from ssl_hub.training.arguments import build_arguments
from ssl_hub.training.pretraining import build_trainer
from ssl_hub.training.recipes import load_recipe, read_yaml

# Narrower backbones and smaller images, with which a single core sees all images a few times in two minutes.
NARROW = {
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128]},
    "vit": {"image_size": 64, "hidden_size": 96, "num_hidden_layers": 4, "intermediate_size": 384},
    "swin": {"image_size": 64, "embed_dim": 32, "depths": [2, 2, 2], "num_heads": [1, 2, 4], "window_size": 4},
}
EVALUATORS = ("knn", "linear_probe", "label_free")


def _percent(name: str) -> Callable[[dict], str]:
    return lambda result: f"{100 * result['before'][name]:.1f} → {100 * result['after'][name]:.1f}"


COLUMNS = {
    "recipe": lambda r: f"`{r['recipe']}`" + "".join(f", {key} {value}" for key, value in r["changes"].items()),
    "batch": lambda r: r["batch_size"],
    "steps": lambda r: r["steps"],
    "epochs": lambda r: f"{r['steps'] * r['batch_size'] / r['num_images']:.1f}",
    "seconds": lambda r: f"{r['seconds']:.0f}",
    "images/s": lambda r: f"{r['steps'] * r['batch_size'] / r['seconds']:.0f}",
    "MB": lambda r: r["memory_mb"],
    "kNN": _percent("knn_accuracy"),
    "linear probe": _percent("linear_probe_accuracy"),
    "RankMe": lambda r: f"{r['before']['rankme']:.0f} → {r['after']['rankme']:.0f}",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tries", nargs="*", metavar="TRY")
    parser.add_argument("--results", type=Path, required=True, help="file of JSON lines, which is appended to")
    parser.add_argument("--train_dir", type=Path)
    parser.add_argument("--validation_dir", type=Path)
    parser.add_argument("--seconds", type=float, default=120, help="of training a try: of the processor, or of the GPU")
    parser.add_argument("--full_width", action="store_true", help="the recipes' own backbones and sizes")
    args = parser.parse_args()
    if not args.tries:
        print(markdown([json.loads(line) for line in args.results.read_text().splitlines()]))
        return
    for description in args.tries:  # each in a process of its own, whose peak of memory is its own too
        process = multiprocessing.get_context("fork").Process(target=measure, args=(description, args))
        process.start()
        process.join()


def measure(description: str, args: argparse.Namespace) -> None:
    """Trains for the time that there is, and writes what came of it."""
    recipe, *words = description.split()
    changes = {key: read_yaml(value) for key, _, value in (word.partition("=") for word in words)}
    splits = [load_image_dataset(folder) for folder in (args.train_dir, args.validation_dir)]
    overrides = [changes["config_overrides"]] if "config_overrides" in changes else []
    if not args.full_width and "model_name_or_path" not in changes:
        narrow = NARROW[load_recipe(recipe).build_config().backbone_config.model_type]
        overrides = [f"backbone_config.{name}={value}" for name, value in narrow.items()] + overrides
        overrides += [] if "image_size" in narrow else ["image_size=64"]

    def build(steps: int, output_dir: Path) -> SSLTrainer:
        arguments = {"dataloader_num_workers": 0, **changes, "config_overrides": ",".join(overrides) or None}
        arguments |= {"max_train_steps": steps, "output_dir": str(output_dir), "evaluation": "[]", "eval_steps": None}
        arguments |= {"dataset_name": "in memory", "checkpointing_steps": str(steps), "logging_steps": min(20, steps)}
        return build_trainer(*build_arguments(recipe, **arguments), splits[0])

    memory = peak_memory_mb()
    with tempfile.TemporaryDirectory() as folder:
        seconds_of(build(2, Path(folder, "first")).train)  # imports and first allocations, which no later run has
        times = [seconds_of(build(steps, Path(folder, str(steps))).train) for steps in (4, 24)]
        steps = round(args.seconds * 20 / (times[1] - times[0]))
        trainer = build(steps, Path(folder, "run"))
        before = evaluate(trainer.model, trainer.image_processor, splits)
        seconds = seconds_of(trainer.train)
        memory = peak_memory_mb() - memory
        losses = [record["loss"] for record in trainer.log.records() if "loss" in record]
    result = {
        "recipe": recipe,
        "changes": changes,
        "narrow": not args.full_width,
        "dataset": args.train_dir.parent.name,
        "num_images": len(splits[0]),
        "batch_size": trainer.args.per_device_train_batch_size,
        "steps": steps,
        "seconds": round(seconds, 1),
        "memory_mb": round(memory),
        "losses": [round(losses[0], 4), round(losses[-1], 4)],
        "before": before,
        "after": evaluate(trainer.model, trainer.image_processor, splits),
        "pixels": evaluate(*pixel_baseline(), splits, ["knn"]),
    }
    with args.results.open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(markdown([result]), flush=True)


def evaluate(model: nn.Module, image_processor, splits: list, names: Sequence[str] = EVALUATORS) -> dict[str, float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    features = []
    for dataset in splits:
        table = extract_dataset(model, dataset, image_processor, batch_size=256, device=device)
        features.append(LabelledFeatures(table.features, torch.tensor(dataset["label"])))
    metrics = {}
    for evaluator in build_evaluators([{"type": name} for name in names]):
        metrics |= evaluator.evaluate(features[1], features[0])
    return {name: round(value, 4) for name, value in metrics.items()}


def seconds_of(run: Callable[[], object]) -> float:
    """Of the processor, of all its threads; of the clock where there is a GPU to wait for."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    run()
    return clock() - start


def peak_memory_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # kilobytes, on Linux


def markdown(results: list[dict]) -> str:
    """A table a dataset, the best kNN accuracy first."""
    tables = []
    for dataset, group in groupby(sorted(results, key=lambda r: r["dataset"]), key=lambda r: r["dataset"]):
        ordered = sorted(group, key=lambda r: -r["after"]["knn_accuracy"])
        rows = [list(COLUMNS), ["---"] * len(COLUMNS), *([str(show(r)) for show in COLUMNS.values()] for r in ordered)]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        tables.append(f"{dataset}; kNN of raw pixels {100 * ordered[0]['pixels']['knn_accuracy']:.1f} %:\n\n{table}")
    return "\n\n".join(tables)


if __name__ == "__main__":
    main()
