"""Pretrains a model, on a folder of images or by a recipe.

    ssl-hub pretrain my_images --dry_run
    ssl-hub pretrain my_images
    accelerate launch -m ssl_hub pretrain --recipe mae-vit-base-300e --dataset_name imagenet-1k --output_dir out

Of a folder all that is not given is chosen to fit its images and the device, and every choice is said; by a recipe, what
the command line leaves out comes from that.
"""

from transformers.utils.logging import disable_progress_bar

from ..printing import set_up_logging
from ..training.arguments import build_arguments, parse_given


def main(args: list[str]) -> None:
    given = parse_given(args)
    from ..training.planning import Plan, plan_pretraining  # not above: --help needs none of it
    from ..training.pretraining import run_pretraining
    from ..training.rehearsal import estimate_run

    set_up_logging()
    disable_progress_bar()  # the trainer shows one
    is_dry_run = given.pop("dry_run", False)
    if "images" in given:
        plan = plan_pretraining(**given)
    else:
        plan = Plan(build_arguments(**given))
        if is_dry_run:
            print(f"estimate    {estimate_run(plan.arguments)}")
    if is_dry_run:
        print("nothing was written: without --dry_run the run begins")
    else:
        run_pretraining(*plan)
