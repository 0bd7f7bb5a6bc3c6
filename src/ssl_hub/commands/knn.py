"""Classifies the images of a split by the labels of their nearest neighbours in another one (arXiv 1805.01978).

    ssl-hub knn --model_name_or_path demo --dataset_name digits
    ssl-hub knn --model_name_or_path timm/resnet18.a1_in1k --dataset_name my_images --k 1 20 200 --temperature 0.07 0.2

The model is one of ours, or any of transformers or timm. `evaluate` has the other protocols, and reports.
"""

from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from transformers.utils.logging import disable_progress_bar

from ..data.datasets import match_labels
from ..evaluation.feature_models import load_feature_model
from ..evaluation.features import extract_dataset, known_rows
from ..evaluation.knn import knn_accuracies
from ..field_types import PositiveInt
from ..printing import printable, set_up_logging
from . import parse
from .arguments import FeatureArguments


@dataclass(kw_only=True)
class KNNArguments(FeatureArguments):
    train_split: str = field(default="train", metadata={"help": "Split with the neighbours."})
    eval_split: str = field(default="test", metadata={"help": "Split that is classified."})
    k: list[int] = field(default_factory=lambda: [20], metadata={"help": "Numbers of neighbours."})
    temperature: list[float] = field(
        default_factory=lambda: [0.07], metadata={"help": "The smaller, the more the nearest ones count."}
    )
    per_device_batch_size: PositiveInt = field(default=64, metadata={"help": "Images a process and forward pass."})


def main(args: list[str]) -> None:
    args = parse("knn", KNNArguments, args)
    set_up_logging()
    disable_progress_bar()
    train, test = (args.load_split(split) for split in (args.train_split, args.eval_split))
    test = match_labels(test, train)
    for split, dataset in ((args.train_split, train), (args.eval_split, test)):
        if "label" not in dataset.column_names:
            raise ValueError(
                f"the split {split!r} of {args.dataset_name!r} has no labels: sort its images into class folders, or name "
                "the column of the labels with --label_column_name"
            )
    model, image_processor = load_feature_model(args.model_name_or_path, args.pooling)
    accelerator = Accelerator()
    model.to(accelerator.device)
    features = []
    for dataset in (train, test):
        table = extract_dataset(
            model,
            dataset,
            image_processor,
            batch_size=args.per_device_batch_size,
            num_workers=args.dataloader_num_workers,
        )
        features += [known_rows(table), torch.tensor(dataset["label"][:])[table.known]]
    features[2] = features[2].to(accelerator.device)
    accuracies = knn_accuracies(*features, ks=args.k, temperatures=args.temperature, shared=True)
    if not accelerator.is_main_process:
        return
    print(
        f"kNN accuracy of {printable(args.model_name_or_path)} on {len(features[2])} images, neighbours among {len(features[0])}"
    )
    print(f"{'k':>6}{'temperature':>14}{'accuracy':>11}")
    for (k, temperature), accuracy in accuracies.items():
        print(f"{k:6}{temperature:14g}{accuracy:11.2%}")
