"""Lists the models of the hub that have every one of some words in their name or description.

ssl-hub models
ssl-hub models vit 1600
"""

from ..hub.models import PublishedModel, list_models
from . import having, parse_words, table


def main(args: list[str]) -> None:
    words = parse_words("models", args)
    chosen = having(words, {model.repo_id: describe(model) for model in list_models()})
    if not chosen:
        raise ValueError(f"no model has {' and '.join(words)}; `ssl-hub models` lists them all")
    print(table(chosen))


def describe(model: PublishedModel) -> str:
    results = ", ".join(f"{result.top1} {result.protocol}" for result in model.results)
    return f"{model.algorithm}, {model.architecture}, {model.epochs} epochs, {model.license}" + (
        f" (published on ImageNet-1k: {results})" if results else ""
    )
