"""Trains a UperNet of transformers on a pretrained backbone, for semantic segmentation.

    python examples/transfer_segmentation.py --backbone out --steps 300 --output_dir upernet

The backbone is that of a run of ssl_hub, or a plain one that transformers' `AutoBackbone` knows: ResNet, Swin, ConvNeXt,
BEiT, DINOv2, but not ViT. Without `--dataset_dir` the images are coloured rectangles. A dataset has the columns `image` and
`annotation`, an image of classes: 0 is the background, 255 is left out of the loss.
"""

import numpy as np
import torch
from PIL import Image
from transformers import HfArgumentParser, UperNetConfig, UperNetForSemanticSegmentation

from ssl_hub.commands import user_errors
from ssl_hub.printing import set_up_logging
from ssl_hub.transfer import TransferArguments, load_backbone_and_rows, train


def main():
    set_up_logging()
    args = HfArgumentParser(TransferArguments, allow_abbrev=False).parse_args_into_dataclasses()[0]
    backbone, to_pixel_values, rows = load_backbone_and_rows(args, "annotation")
    config = UperNetConfig(
        backbone_config=backbone.config, num_labels=args.num_labels + 1, hidden_size=128, use_auxiliary_head=False
    )
    model = UperNetForSemanticSegmentation(config)
    model.backbone.load_state_dict(backbone.state_dict())

    def collate(batch: list[dict]) -> dict:
        pixel_values = torch.stack([to_pixel_values(row["image"]) for row in batch])
        labels = [to_labels(row["annotation"], pixel_values.shape[-1], args.num_labels) for row in batch]
        return {"pixel_values": pixel_values, "labels": torch.stack(labels)}

    train(model, rows, collate, args)


def to_labels(annotation: Image.Image, size: int, num_labels: int) -> torch.Tensor:
    """Classes `(size, size)` of the pixels."""
    labels = torch.from_numpy(np.array(annotation.resize((size, size), Image.Resampling.NEAREST), dtype=np.int64))
    if labels.ndim != 2 or ((labels > num_labels) & (labels != 255)).any():
        raise ValueError(
            f"an annotation has {len(annotation.getbands())} channels and values up to {int(labels.max())}: it must have "
            f"one channel, with classes from 0 to --num_labels {num_labels}, or 255"
        )
    return labels


if __name__ == "__main__":
    with user_errors():
        main()
