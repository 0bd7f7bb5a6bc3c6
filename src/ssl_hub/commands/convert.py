"""Turns a public checkpoint into one that `AutoModel.from_pretrained` loads.

    ssl-hub convert --checkpoint mae_pretrain_vit_base.pth --source facebook --encoder_only \
        --recipe mae-vit-base-1600e --output_dir mae-vit-base

Every tensor must find its place, and every place its tensor. A `.pth` file is read without unpickling objects.
"""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForPreTraining
from transformers.utils.logging import disable_progress_bar

from ..conversion.sources import SOURCES, load_foreign_checkpoint
from ..data.processing import build_image_processor
from ..hub.publishing import save_for_sharing
from ..printing import set_up_logging
from ..training.recipes import load_recipe
from . import parse


@dataclass
class ConversionArguments:
    checkpoint: str = field(
        metadata={"help": "The .pth or .safetensors file; a folder or a Hub id with --source transformers."}
    )
    source: str = field(metadata={"help": "The code base that wrote it.", "choices": list(SOURCES)})
    recipe: str = field(metadata={"help": "Name of a recipe, or path of its YAML file, with the same model."})
    output_dir: str = field(metadata={"help": "Where the model goes: a new or an empty folder."})
    config_overrides: str | None = field(
        default=None, metadata={"help": "Changes to the recipe's model: name=value,backbone_config.name=value,..."}
    )
    encoder_only: bool = field(
        default=False,
        metadata={"help": "The checkpoint lacks neck, head, teacher or queue; what it lacks is newly initialised."},
    )


def main(args: list[str]) -> None:
    args = parse("convert", ConversionArguments, args)
    set_up_logging()
    disable_progress_bar()
    output_dir = Path(args.output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(
            f"--output_dir {output_dir} exists already, and nothing is written over: give a new or an empty folder"
        )
    torch.manual_seed(0)  # of what is newly initialised
    config = load_recipe(args.recipe).build_config(args.config_overrides)
    model = AutoModelForPreTraining.from_config(config)
    new = ("neck.", "head.", "teacher.", "memory.") if args.encoder_only else ()
    load_foreign_checkpoint(model, args.checkpoint, args.source, new=new)
    image_processor = build_image_processor(config.image_size, config.image_mean, config.image_std)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output_dir.parent, prefix=f"{output_dir.name}.unfinished-") as unfinished:
        save_for_sharing(model, image_processor, Path(unfinished) / "model")
        (Path(unfinished) / "model").rename(output_dir)  # whole, or not at all
    print(f"the model is in {output_dir}")
