"""Lists the recipes that have every one of some words in what it says about them.

ssl-hub recipes
ssl-hub recipes moco resnet50
"""

from difflib import get_close_matches
from textwrap import fill

from transformers import PreTrainedConfig

from ..classification.arguments import PROTOCOLS_PACKAGE, list_protocols
from ..registry import ALGORITHMS
from ..training.recipes import list_recipes, load_recipe, recipe_summary
from . import having, parse_words, table

_COLUMNS = ("recipe", "algorithm", "backbone", "pixels", "data", "length", "batch")
_WIDTH = 110


def main(args: list[str]) -> None:
    words = parse_words("recipes", args)
    rows = {name: describe(name) for name in list_recipes()}
    texts = {name: " ".join([*cells, *results.values()]) for name, (cells, results) in rows.items()}
    protocols = having(words, {name: recipe_summary(name, PROTOCOLS_PACKAGE) for name in list_protocols()})
    chosen = {name: rows[name] for name in having(words, texts)}
    if not chosen and not protocols:
        parts = {part for name in rows for part in (name, *name.split("-"))}
        near = {each for word in words for each in get_close_matches(word, sorted(parts), n=3)}
        hint = f"near it: {', '.join(sorted(near))}" if near else "`ssl-hub recipes` lists them all"
        raise ValueError(f"no recipe has {' and '.join(words)}; {hint}")
    if chosen:
        print(f"\nssl-hub pretrain --recipe\n{recipe_table(chosen)}")
    if protocols:
        print("\nssl-hub probe --augment --recipe, ssl-hub finetune --recipe")
        for line in table(protocols).splitlines():
            print(fill(line, _WIDTH, initial_indent="  ", subsequent_indent=" " * (4 + max(map(len, protocols)))))


def recipe_table(rows: dict[str, tuple[tuple[str, ...], dict[str, str]]]) -> str:
    """A line a recipe, and below it its results."""
    cells = [_COLUMNS, *((name, *others) for name, (others, _) in rows.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row, results in zip(cells, [{}, *(results for _, results in rows.values())], strict=True):
        lines.append("  " + "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
        lines += [
            fill(f"{kind}: {text}", _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 8)
            for kind, text in results.items()
        ]
    return "\n".join(lines)


def describe(name: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """The cells of `_COLUMNS` but the first, and the results."""
    recipe = load_recipe(name)
    config, training = recipe.build_config(), recipe.training
    steps, epochs = training.get("max_train_steps"), training.get("num_train_epochs")
    cells = (
        ALGORITHMS[config.model_type],
        describe_backbone(config.backbone_config),
        str(config.image_size),
        training.get("dataset_name", "yours").rpartition("/")[2],
        f"{steps} steps" if steps is not None else f"{epochs:g} epochs",
        str(training["per_device_train_batch_size"]),
    )
    return cells, recipe.results


def describe_backbone(config: PreTrainedConfig) -> str:
    """Such as "ResNet-50", or "vit 768/16" for its width and the size of its patches."""
    if config.model_type in ("resnet", "cifar_resnet"):
        return f"ResNet-{2 + sum(config.depths) * (2 if config.layer_type == 'basic' else 3)}"
    widths = getattr(config, "hidden_sizes", None)
    if widths:
        return f"{config.model_type} {widths[-1]}"
    return f"{config.model_type} {getattr(config, 'embed_dim', None) or config.hidden_size}/{config.patch_size}"
