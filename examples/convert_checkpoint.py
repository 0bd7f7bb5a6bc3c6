"""Turns a public checkpoint into one that `AutoModel.from_pretrained` loads.

    python examples/convert_checkpoint.py --checkpoint mae_pretrain_vit_base.pth \
        --recipe mae-vit-base-1600e --output_dir mae-vit-base

Every tensor must find its place, and every place its tensor, but for a file of a backbone alone, or with --encoder_only.
--verify compares features with those of timm's or transformers' own model of the file.
A `.pth` file is read without unpickling objects.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForPreTraining, HfArgumentParser
from transformers.utils.logging import disable_progress_bar

from ssl_hub.conversion.sources import SOURCES, Conversion, config_of_checkpoint, load_foreign_checkpoint
from ssl_hub.data.processing import build_image_processor
from ssl_hub.hub.publishing import save_for_sharing
from ssl_hub.printing import name_some, printable_lines, set_up_logging
from ssl_hub.training.recipes import load_recipe


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


def report(conversion: Conversion, verified: bool) -> None:
    print(f"recognised: {conversion.layout}")
    for reason in dict.fromkeys(conversion.dropped.values()):
        names = [name for name, why in conversion.dropped.items() if why == reason]
        print(f"left out: {name_some(names)} ({len(names)}): {reason}")
    if conversion.new:
        print(f"newly initialised: {name_some(conversion.new)} ({len(conversion.new)})")
    if verified:
        difference = conversion.difference
        known = "no other library here has this model under these names" if difference is None else f"{difference:.1e}"
        print(f"largest difference from the features of the original: {known}")


def main():
    args = HfArgumentParser(ConversionArguments, allow_abbrev=False).parse_args_into_dataclasses()[0]
    set_up_logging()
    disable_progress_bar()
    output_dir = Path(args.output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(
            f"--output_dir {output_dir} exists already, and nothing is written over: give a new or an empty folder"
        )
    torch.manual_seed(0)  # of what is newly initialised
    if args.recipe is not None:
        config = load_recipe(args.recipe).build_config(args.config_overrides)
    elif args.config_overrides is not None:
        raise ValueError("--config_overrides are changes to the model of a recipe: give --recipe as well")
    else:
        config = config_of_checkpoint(args.checkpoint, args.source)
    model = AutoModelForPreTraining.from_config(config)
    new = ("neck.", "head.", "teacher.", "memory.") if args.encoder_only else ()
    report(load_foreign_checkpoint(model, args.checkpoint, args.source, new, args.verify), args.verify)
    image_processor = build_image_processor(config.image_size, config.image_mean, config.image_std)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output_dir.parent, prefix=f"{output_dir.name}.unfinished-") as unfinished:
        save_for_sharing(model, image_processor, Path(unfinished) / "model")
        (Path(unfinished) / "model").rename(output_dir)  # whole, or not at all
    print(f"the model is in {output_dir}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:  # user errors
        sys.exit(f"error: {printable_lines(error)}")
