"""Lists the recipes that have every one of some words in their name or summary.

ssl-hub recipes
ssl-hub recipes moco resnet50
"""

import argparse

from ..classification.arguments import PROTOCOLS_PACKAGE, list_protocols
from ..training.recipes import RECIPES_PACKAGE, list_recipes, load_recipe, recipe_summary
from . import COMMANDS


def main(args: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="ssl-hub recipes", description=COMMANDS["recipes"], allow_abbrev=False)
    parser.add_argument("words", nargs="*", help="Show the recipes that have all of them.")
    words = [word.lower() for word in parser.parse_args(args).words]
    sections = {
        "ssl-hub pretrain --recipe": {name: describe(name) for name in list_recipes()},
        "ssl-hub probe --augment --recipe, ssl-hub finetune --recipe": {
            name: recipe_summary(name, PROTOCOLS_PACKAGE) for name in list_protocols()
        },
    }
    found = False
    for title, recipes in sections.items():
        chosen = {
            name: text for name, text in recipes.items() if all(word in f"{name} {text}".lower() for word in words)
        }
        if chosen:
            width = max(map(len, chosen))
            print(f"\n{title}", *(f"  {name:{width}}  {text}" for name, text in chosen.items()), sep="\n")
        found = found or bool(chosen)
    if not found:
        raise ValueError(f"no recipe has {' and '.join(words)}; `ssl-hub recipes` lists them all")


def describe(name: str) -> str:
    training = load_recipe(name).training
    steps, epochs = training.get("max_train_steps"), training.get("num_train_epochs")
    length = f"{steps} steps" if steps is not None else f"{epochs} epochs"
    return (
        f"{recipe_summary(name, RECIPES_PACKAGE)} [{length}, {training['per_device_train_batch_size']} images a device]"
    )
