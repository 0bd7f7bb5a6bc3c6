"""Tells what a run of the demo has learned.

    python examples/report_demo.py demo

Compares three kinds of features of scikit-learn's digits: the pixels, an untrained model, the pretrained model. Takes
the folder of any recipe on the digits.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModel
from transformers.utils.logging import disable_progress_bar

import ssl_hub  # noqa: F401 - registers the algorithms
from ssl_hub.commands import user_errors
from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.data.loading import build_eval_loader
from ssl_hub.evaluation.features import extract_features
from ssl_hub.evaluation.knn import knn_accuracy
from ssl_hub.evaluation.linear_probe import linear_probe_accuracy
from ssl_hub.pretrained import load_pretrained
from ssl_hub.printing import set_up_logging


def main(folder: Path):
    set_up_logging()
    disable_progress_bar()
    model = load_pretrained(AutoModel, folder)
    image_processor = load_pretrained(AutoImageProcessor, folder)
    torch.manual_seed(0)
    untrained = AutoModel.from_config(model.config)
    loaders = [
        build_eval_loader(load_image_dataset("digits", split), image_processor, batch_size=256)
        for split in ("train", "test")
    ]

    print(f"\n{'features of the digits':24}{'kNN':>8}{'linear probe':>15}")
    print_row("pixels", [pixels(loader) for loader in loaders])
    print_row("untrained model", [extract_features(untrained, loader)[:2] for loader in loaders])
    print_row("pretrained model", [extract_features(model, loader)[:2] for loader in loaders])
    print("top-1 accuracy on 360 test digits; 1437 train digits, whose labels only kNN and probe have seen\n")

    if (folder / "reconstruction.png").exists():  # of masked-image models
        print(f"what the model fills in for hidden patches: {folder / 'reconstruction.png'}")
    print(f"loss and kNN accuracy over the run:         {folder / 'curves.png'}\n")
    print(
        "To pretrain on a folder of your own images, with one GPU:\n"
        "  .venv/bin/accelerate launch examples/run_pretrain.py --recipe mae-vit-base-300e --train_dir path/to/images \\\n"
        "    --per_device_train_batch_size 64 --checkpointing_steps 2000 --output_dir out"
    )


def pixels(loader) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(loader)
    features = torch.cat([batch["pixel_values"].flatten(1) for batch in batches])
    return features, torch.cat([batch["labels"] for batch in batches])


def print_row(name: str, splits: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    (train, train_labels), (test, test_labels) = splits
    knn = knn_accuracy(train, train_labels, test, test_labels)
    probe = linear_probe_accuracy(train, train_labels, test, test_labels)
    print(f"{name:24}{knn:8.1%}{probe:15.1%}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with user_errors():
        main(Path(sys.argv[1]))
