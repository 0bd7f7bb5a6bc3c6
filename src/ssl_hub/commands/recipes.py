"""Lists the recipes that have every one of some words in their name or summary.

ssl-hub recipes
ssl-hub recipes moco resnet50
"""

from textwrap import indent

from ..classification.arguments import PROTOCOLS_PACKAGE, list_protocols
from ..training.recipes import RECIPES_PACKAGE, list_recipes, load_recipe, recipe_summary
from . import having, parse_words, table


def main(args: list[str]) -> None:
    words = parse_words("recipes", args)
    sections = {
        "ssl-hub pretrain --recipe": {name: describe(name) for name in list_recipes()},
        "ssl-hub probe --augment --recipe, ssl-hub finetune --recipe": {
            name: recipe_summary(name, PROTOCOLS_PACKAGE) for name in list_protocols()
        },
    }
    chosen = {title: found for title, recipes in sections.items() if (found := having(words, recipes))}
    if not chosen:
        raise ValueError(f"no recipe has {' and '.join(words)}; `ssl-hub recipes` lists them all")
    for title, recipes in chosen.items():
        print(f"\n{title}\n{indent(table(recipes), '  ')}")


def describe(name: str) -> str:
    training = load_recipe(name).training
    steps, epochs = training.get("max_train_steps"), training.get("num_train_epochs")
    length = f"{steps} steps" if steps is not None else f"{epochs} epochs"
    return (
        f"{recipe_summary(name, RECIPES_PACKAGE)} [{length}, {training['per_device_train_batch_size']} images a device]"
    )
