"""Turns a public checkpoint into one that `AutoModel.from_pretrained` loads.

    ssl-hub convert --checkpoint mae_pretrain_vit_base.pth \
        --recipe mae-vit-base-1600e --output_dir mae-vit-base

Every tensor must find its place, and every place its tensor, but for a file of a backbone alone, or with --encoder_only.
--verify compares features with those of timm's or transformers' own model of the file. A `.pth` file is read without
unpickling objects.
"""

from dataclasses import dataclass, field

import torch
from transformers import AutoModelForPreTraining
from transformers.utils.logging import disable_progress_bar

from ..conversion.sources import SOURCES, config_of_checkpoint, load_foreign_checkpoint
from ..data.processing import build_image_processor
from ..hub.publishing import new_folder, save_for_sharing
from ..printing import set_up_logging
from ..training.recipes import load_recipe
from . import parse


@dataclass
class ConversionArguments:
    checkpoint: str = field(
        metadata={"help": "The .pth or .safetensors file; a folder or a Hub id with --source transformers."}
    )
    output_dir: str = field(metadata={"help": "Where the model goes: a new or an empty folder."})
    recipe: str | None = field(
        default=None,
        metadata={
            "help": "Name of a recipe, or path of its YAML file, with the same model; by default read from shapes."
        },
    )
    source: str | None = field(
        default=None,
        metadata={"help": "The code base that wrote it; by default recognised from its names.", "choices": SOURCES},
    )
    config_overrides: str | None = field(
        default=None,
        metadata={"help": "With --recipe, changes to its model: name=value,backbone_config.name=value,..."},
    )
    encoder_only: bool = field(
        default=False,
        metadata={"help": "The checkpoint lacks neck, head, teacher or queue; what it lacks is newly initialised."},
    )
    verify: bool = field(
        default=False, metadata={"help": "Compare features with those of timm's or transformers' model of the file."}
    )


def main(args: list[str]) -> None:
    args = parse("convert", ConversionArguments, args)
    set_up_logging()
    disable_progress_bar()
    with new_folder(args.output_dir) as folder:
        torch.manual_seed(0)  # of what is newly initialised
        if args.recipe is not None:
            config = load_recipe(args.recipe).build_config(args.config_overrides)
        elif args.config_overrides is not None:
            raise ValueError("--config_overrides are changes to the model of a recipe: give --recipe as well")
        else:
            config = config_of_checkpoint(args.checkpoint, args.source)
        model = AutoModelForPreTraining.from_config(config)
        new = ("neck.", "head.", "teacher.", "memory.") if args.encoder_only else ()
        conversion = load_foreign_checkpoint(model, args.checkpoint, args.source, new, args.verify)
        print(conversion.report(args.verify))
        image_processor = build_image_processor(config.image_size, config.image_mean, config.image_std)
        save_for_sharing(model, image_processor, folder)
    print(f"the model is in {args.output_dir}")
