"""Lists the models of the hub that have every one of some words in their name or description.

ssl-hub models
ssl-hub models vit 1600
"""

import argparse

from ..hub.models import PublishedModel, list_models
from . import COMMANDS


def main(args: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="ssl-hub models", description=COMMANDS["models"], allow_abbrev=False)
    parser.add_argument("words", nargs="*", help="Show the models that have all of them.")
    words = [word.lower() for word in parser.parse_args(args).words]
    rows = {model.repo_id: describe(model) for model in list_models()}
    chosen = {name: text for name, text in rows.items() if all(word in f"{name} {text}".lower() for word in words)}
    if not chosen:
        raise ValueError(f"no model has {' and '.join(words)}; `ssl-hub models` lists them all")
    width = max(map(len, chosen))
    print("\n".join(f"{name:{width}}  {text}" for name, text in chosen.items()))


def describe(model: PublishedModel) -> str:
    results = ", ".join(f"{result.top1} {result.protocol}" for result in model.results)
    return f"{model.algorithm}, {model.architecture}, {model.epochs} epochs, {model.license}" + (
        f" (published on ImageNet-1k: {results})" if results else ""
    )
