"""Draws what a masked-image model makes of images whose patches are masked.

    ssl-hub reconstruct --model_name_or_path demo --dataset_name digits --split test

The picture has a column for each image, and the rows: the original, what the model sees of it, what it predicts, and
the same with the visible patches of the original.
"""

from dataclasses import dataclass, field

import torch
from transformers import AutoModelForPreTraining
from transformers.utils.logging import disable_progress_bar

from .. import ReconstructionOutput
from ..data.datasets import load_image_dataset
from ..data.loading import build_eval_loader
from ..data.processing import Normalize, build_image_processor
from ..field_types import PositiveInt, Seed, check_fields
from ..pretrained import load_pretrained
from ..printing import set_up_logging
from ..visualization.reconstruction import plot_reconstruction
from . import parse


@dataclass
class VisualizationArguments:
    model_name_or_path: str = field(metadata={"help": "A folder that a run or a conversion wrote, or a Hub id."})
    dataset_name: str = field(metadata={"help": "A folder of images, 'digits', or any dataset that pretraining takes."})
    split: str = field(default="train", metadata={"help": "The dataset's split."})
    num_images: PositiveInt = field(default=8, metadata={"help": "How many images, the dataset's first."})
    seed: Seed = field(default=0, metadata={"help": "Of the masks."})
    output_file: str = field(default="reconstruction.png", metadata={"help": "Where the picture goes."})

    def __post_init__(self):
        check_fields(self, "--")


def main(args: list[str]) -> None:
    args = parse("reconstruct", VisualizationArguments, args)
    set_up_logging()
    disable_progress_bar()
    model = load_pretrained(AutoModelForPreTraining, args.model_name_or_path).eval()
    config = model.config
    dataset = load_image_dataset(args.dataset_name, args.split)
    dataset = dataset.select(range(min(args.num_images, len(dataset))))
    image_processor = build_image_processor(config.image_size, config.image_mean, config.image_std)
    batch = next(iter(build_eval_loader(dataset, image_processor, batch_size=len(dataset))))
    if len(batch["pixel_values"]) == 0:
        raise ValueError(f"none of the first {args.num_images} images of {args.dataset_name} can be read")

    torch.manual_seed(args.seed)
    outputs = model(batch["pixel_values"], mode="predict")
    if not isinstance(outputs, ReconstructionOutput) or outputs.reconstruction is None:
        raise ValueError(
            f"{args.model_name_or_path} is a {type(model).__name__}, which predicts no picture: give a masked-image "
            "model such as MAE, SimMIM or MaskFeat"
        )
    originals = Normalize(config.image_mean, config.image_std).denormalize(batch["pixel_values"])
    pictures = (originals, outputs.masked_image, outputs.reconstruction)
    plot_reconstruction(*pictures, args.output_file, outputs.mask, with_prediction=True)
    print(f"the picture is {args.output_file}")
