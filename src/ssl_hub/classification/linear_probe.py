"""Linear evaluation on frozen features that are extracted once."""

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..evaluation.features import extract_dataset
from ..evaluation.linear_probe import LinearProbeSweep, sweep_linear_probes
from .arguments import Arguments, ClassifierTrainingArguments
from .data import LabelledImages
from .models import load_images_and_classifier


def probe_features(arguments: Arguments, learning_rates: list[float], held_out: float) -> LinearProbeSweep:
    """Extracts the features of both splits, each process those of its part, and probes them on the device.

    Every process finds the same; the first one writes `results.json` to `output_dir` and prints it.

    Raises:
        ValueError: see [`load_images_and_classifier`] and [`sweep_linear_probes`]; or a stage or norm is asked for, which
            belong to the protocols with augmentation.
    """
    model_args, _, _, args = arguments
    if model_args.classifier_stages or model_args.classifier_norm or model_args.recipe:
        raise ValueError(
            "classifier_stages, classifier_norm and recipes belong to the protocols with augmentation: give --augment; "
            "without it the pooled features are standardised"
        )
    train_images, test_images, model, processor = load_images_and_classifier(arguments, freeze_backbone=True)
    model = model.to(args.device)
    train = _extract(model, train_images, processor, args)
    test = _extract(model, test_images, processor, args)
    found = sweep_linear_probes(
        *train,
        *test,
        learning_rates,
        epochs=int(args.num_train_epochs),
        batch_size=args.per_device_train_batch_size,
        held_out=held_out,
        seed=args.seed,
    )
    if args.process_index == 0:
        results = {
            "model": model_args.model_name_or_path,
            "from_scratch": model_args.from_scratch,
            "train_images": len(train[1]),
            "test_images": len(test[1]),
            "classes": model.config.num_labels,
            "validation_accuracy_by_learning_rate": found.validation_accuracies,
            "learning_rate": found.learning_rate,
            "accuracy": found.test_accuracy,
        }
        output_dir = Path(args.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        print(
            f"linear probe: {found.test_accuracy:.2%} of {len(test[1])} test images, learning rate "
            f"{found.learning_rate:g}, chosen on a held-out part of {len(train[1])} training images"
        )
    return found


def _extract(
    model: PreTrainedModel, images: LabelledImages, processor, args: ClassifierTrainingArguments
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features `(N, D)` of the images that can be read, and their labels `(N,)`, on the device."""
    table = extract_dataset(
        model,
        images.dataset,
        processor,
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        device=args.device,
        extract=lambda pixel_values: model.extract_features(pixel_values).pooler_output,
    )
    labels = torch.from_numpy(images.labels)
    return table.features[table.known].to(args.device), labels[table.known].to(args.device)
