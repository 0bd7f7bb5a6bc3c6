"""What the examples of transfer to detection and segmentation share: arguments, images, and the training."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments

from .configuration_utils import backbone_image_size
from .data.processing import Normalize
from .data.rectangles import NUM_CLASSES, RectangleImages
from .field_types import NonNegativeInt, PositiveFloat, PositiveInt, check_fields
from .model_loading import image_statistics, load_feature_pyramid, load_image_processor


@dataclass
class TransferArguments:
    backbone: str = field(
        metadata={"help": "Folder or Hub id: of a run of ssl_hub, of its backbone/, or of a backbone of transformers."}
    )
    dataset_dir: str | None = field(
        default=None, metadata={"help": "Folder written by save_to_disk; coloured rectangles by default."}
    )
    num_labels: PositiveInt = field(
        default=NUM_CLASSES, metadata={"help": "Number of classes, without the background."}
    )
    image_size: PositiveInt | None = field(default=None, metadata={"help": "In pixels; by default the backbone's."})
    steps: PositiveInt = field(default=300, metadata={"help": "Optimizer steps."})
    per_device_train_batch_size: PositiveInt = field(default=8, metadata={"help": "Images a process and step."})
    learning_rate: PositiveFloat = field(default=1e-4, metadata={"help": "Of AdamW."})
    seed: NonNegativeInt = field(default=0, metadata={"help": "Of the new weights, the order and the rectangles."})
    output_dir: str = field(default="transfer", metadata={"help": "Where the model goes."})

    def __post_init__(self):
        check_fields(self, "--")


def load_backbone_and_rows(args: TransferArguments, column: str):
    """The backbone, and what makes `pixel_values` of an image, and the rows to train on.

    Args:
        column: of the labels.

    Raises:
        ValueError, OSError: see [`load_feature_pyramid`]; there is no such dataset, or it lacks a column.
    """
    torch.manual_seed(args.seed)
    backbone = load_feature_pyramid(args.backbone)
    mean, std = image_statistics(load_image_processor(args.backbone, backbone.config))
    size, normalize = args.image_size or backbone_image_size(backbone.config), Normalize(mean, std)

    def to_pixel_values(image: Image.Image) -> torch.Tensor:
        return normalize(pil_to_tensor(image.convert("RGB").resize((size, size))))

    return backbone, to_pixel_values, _load_rows(args, column, size)


def train(
    model: PreTrainedModel,
    rows: torch.utils.data.Dataset,
    collate: Callable[[list[dict]], dict],
    args: TransferArguments,
) -> list[float]:
    """Trains with transformers' `Trainer`, saves the model, and returns the losses, one a step."""
    settings = TrainingArguments(
        args.output_dir,
        max_steps=args.steps,
        per_device_train_batch_size=args.per_device_train_batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
        max_grad_norm=0.1,  # DETR's
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = Trainer(model, settings, train_dataset=rows, data_collator=collate)
    trainer.train()
    trainer.save_model()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    few = max(1, len(losses) // 10)
    if trainer.is_world_process_zero():
        print(f"loss {sum(losses[:few]) / few:.3f} -> {sum(losses[-few:]) / few:.3f} in {len(losses)} steps")
    return losses


def _load_rows(args: TransferArguments, column: str, size: int) -> torch.utils.data.Dataset:
    if args.dataset_dir is None:
        return RectangleImages(args.steps * args.per_device_train_batch_size, size, args.seed)
    if not Path(args.dataset_dir).is_dir():
        raise FileNotFoundError(f"there is no folder {args.dataset_dir!r}: give one that save_to_disk has written")
    rows = datasets.load_from_disk(args.dataset_dir)
    rows = rows["train"] if isinstance(rows, datasets.DatasetDict) and "train" in rows else rows
    if isinstance(rows, datasets.DatasetDict) or not {"image", column} <= set(rows.column_names):
        raise ValueError(
            f"{args.dataset_dir!r} must be a dataset, or have a split train, with the columns image and {column}; it has "
            f"{rows.column_names}"
        )
    return rows
