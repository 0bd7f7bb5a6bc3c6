"""Trains a DETR of transformers on a pretrained backbone, for detection.

    python examples/transfer_detection.py --backbone out --steps 300 --output_dir detr

The backbone is that of a run of ssl_hub, or a plain one that transformers' `AutoBackbone` knows: ResNet, Swin, ConvNeXt,
BEiT, DINOv2, but not ViT. Without `--dataset_dir` the images are coloured rectangles. A dataset has the columns `image` and
`objects`, with `bbox` (left, top, width, height, in pixels) and `category`. The DETR is a small one: for COCO give
`DetrConfig` its defaults.
"""

import torch
from transformers import DetrConfig, DetrForObjectDetection, HfArgumentParser

from ssl_hub.commands import user_errors
from ssl_hub.printing import set_up_logging
from ssl_hub.transfer import TransferArguments, load_backbone_and_rows, train


def main():
    set_up_logging()
    args = HfArgumentParser(TransferArguments, allow_abbrev=False).parse_args_into_dataclasses()[0]
    backbone, to_pixel_values, rows = load_backbone_and_rows(args, "objects")
    config = DetrConfig(
        backbone_config=backbone.config,
        num_labels=args.num_labels,
        num_queries=20,
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        dropout=0.0,
    )
    model = DetrForObjectDetection(config)
    model.model.backbone.model.load_state_dict(backbone.state_dict())

    def collate(batch: list[dict]) -> dict:
        return {
            "pixel_values": torch.stack([to_pixel_values(row["image"]) for row in batch]),
            "labels": [to_labels(row, args.num_labels) for row in batch],
        }

    train(model, rows, collate, args)


def to_labels(row: dict, num_labels: int) -> dict:
    """Classes `(n,)` and boxes `(n, 4)`: center, width and height, as shares of the image's."""
    classes = torch.tensor(row["objects"]["category"], dtype=torch.long)
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < num_labels:
        raise ValueError(
            f"a category is {int(classes.max())}, and --num_labels {num_labels} allows 0 to {num_labels - 1}"
        )
    boxes = torch.tensor(row["objects"]["bbox"], dtype=torch.float32).view(-1, 4)
    corners, sides = boxes.split(2, dim=1)
    return {
        "class_labels": classes,
        "boxes": torch.cat([corners + sides / 2, sides], dim=1) / torch.tensor(row["image"].size * 2),
    }


if __name__ == "__main__":
    with user_errors():
        main()
