"""Fills the Hub: converts the checkpoint of a published model, writes its card, and pushes both to `ssl-hub/NAME`.

    ssl-hub publish mae-vit-base \
        --checkpoint mae_vit-base-p16_8xb512-fp16-coslr-1600e_in1k_20220825-f7569ca2.pth

`ssl_hub.list_models()` says which models there are, and where the file of each is from. Every tensor must find its place,
and every place its tensor; features are compared with those of timm's model of the file, where timm has it under its
names. What is pushed is kept in --output_dir; a push that fails says how to push it later.
"""

from dataclasses import dataclass, field

from transformers import AutoModelForPreTraining, HfArgumentParser
from transformers.utils.logging import disable_progress_bar

from ..conversion.sources import load_foreign_checkpoint
from ..data.processing import build_image_processor
from ..hub.models import NAMESPACE, model_info
from ..hub.published_card import build_published_card
from ..hub.publishing import check_can_push, new_folder, publish, save_for_sharing
from ..printing import set_up_logging
from ..training.recipes import load_recipe
from . import COMMANDS


@dataclass
class PublishingArguments:
    checkpoint: str = field(metadata={"help": "The published checkpoint, downloaded."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Where the model is kept: a new or an empty folder; by default NAME."}
    )
    namespace: str = field(default=NAMESPACE, metadata={"help": "Whose repository it becomes on the Hub."})
    dry_run: bool = field(default=False, metadata={"help": "Do all but push."})


def main(args: list[str]) -> None:
    parser = HfArgumentParser(
        PublishingArguments, prog="ssl-hub publish", description=COMMANDS["publish"], allow_abbrev=False
    )
    parser.add_argument("name", help="Of a published model, such as mae-vit-base.")
    args, positional = parser.parse_args_into_dataclasses(args)
    set_up_logging()
    disable_progress_bar()
    published = model_info(positional.name)
    output_dir, repo_id = args.output_dir or published.name, f"{args.namespace}/{published.name}"
    if not args.dry_run:
        check_can_push(repo_id)
    with new_folder(output_dir) as folder:
        config = load_recipe(published.recipe).build_config()
        model = AutoModelForPreTraining.from_config(config)
        conversion = load_foreign_checkpoint(model, args.checkpoint, published.key_format, verify=True)
        print(conversion.report(verified=True))
        save_for_sharing(model, build_image_processor(config.image_size, config.image_mean, config.image_std), folder)
        build_published_card(published, config, repo_id).save(folder / "README.md")
    print(f"the model is in {output_dir}")
    if not args.dry_run:
        print(f"pushed to {publish(output_dir, repo_id)}")
