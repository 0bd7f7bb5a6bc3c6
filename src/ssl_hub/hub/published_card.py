"""The model card of a published model, written from its entry in the table."""

import textwrap

from huggingface_hub import ModelCard, ModelCardData

from ..configuration_utils import SSLConfig
from .model_card import how_to_load
from .models import PublishedModel

_LICENSES = {
    "apache-2.0": "Apache-2.0",
    "cc-by-nc-4.0": "CC BY-NC 4.0, for non-commercial use only",
    "mit": "MIT",
}


def build_published_card(model: PublishedModel, config: SSLConfig, repo_id: str | None = None) -> ModelCard:
    """The card of a published model: what it is, where it comes from, what was published of it, how to use it.

    Args:
        config: of the model, as its recipe says.
        repo_id: where it is pushed to; by default `ssl-hub/<name>`.
    """
    repo_id = repo_id or model.repo_id
    data = ModelCardData(
        license=model.license,
        library_name="ssl_hub",  # as in `build_model_card`
        pipeline_tag="image-feature-extraction",
        tags=["self-supervised-learning", "vision", config.model_type, f"arxiv:{model.paper.arxiv_id}"],
        datasets=["ILSVRC/imagenet-1k"],
    )
    sections = [
        f"# {model.name}",
        _introduction(model),
        how_to_load(repo_id, config),
        _commands(model, repo_id),
        _source(model),
        _results(model),
        _limits(model, config),
        _citation(model),
    ]
    text = "\n\n".join(sections)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def _publisher(model: PublishedModel) -> str:
    return "MMSelfSup" if model.key_format == "mmselfsup" else "the authors"


def _introduction(model: PublishedModel) -> str:
    return _wrapped(
        f"A {model.architecture}, pretrained on the images of ImageNet-1k without their labels for {model.epochs} epochs "
        f"by {model.algorithm} ([{model.paper.title}](https://arxiv.org/abs/{model.paper.arxiv_id})). It was trained and "
        f"released by {_publisher(model)}, and converted to [transformers](https://github.com/huggingface/transformers) "
        "by `ssl_hub`. Backbone, heads and image processor are all here."
    )


def _commands(model: PublishedModel, repo_id: str) -> str:
    fine_tuning = next(
        (f"--recipe {result.recipe}" for result in model.results if result.recipe.startswith("finetune-")),
        "--num_train_epochs 50 --learning_rate 1e-3",
    )
    return f"""Extract features, fine-tune, and continue pretraining on images of your own:

```bash
ssl-hub embed --model_name_or_path {repo_id} --dataset_name path/to/images --output_dir features
ssl-hub finetune --model_name_or_path {repo_id} {fine_tuning} \\
  --train_dir path/to/train --validation_dir path/to/test --output_dir finetuned
ssl-hub pretrain --model_name_or_path {repo_id} --recipe {model.recipe} \\
  --train_dir path/to/images --output_dir pretrained
```"""


def _source(model: PublishedModel) -> str:
    rows = {
        "checkpoint": f"[{model.source_file}]({model.source_url})",
        "released at": f"<{model.released_at}>",
        "license": _LICENSES[model.license],
        "names of its tensors": f"`{model.key_format}`",
        "recipe": f"`{model.recipe}`, which says in which details it differs from theirs",
    }
    return "\n\n".join(
        [
            "## Source",
            _table(("", ""), *rows.items()),
            _wrapped(
                "The license is that of the checkpoint, as stated where it was released; see there for its terms. The "
                "conversion renames tensors. It refuses a file in which a tensor has no place, or a place no tensor, and compares "
                "features with those of timm's model of the same file, where timm knows its names."
            ),
        ]
    )


def _results(model: PublishedModel) -> str:
    rows = [
        (result.protocol, f"{result.top1:.2f}".removesuffix("0"), result.recipe and f"`{result.recipe}`")
        for result in model.results
    ]
    text = f"Top-1 accuracy on the validation images of ImageNet-1k, in percent, as published by {_publisher(model)}."
    if any("kNN" in result.protocol for result in model.results):
        text += " The value of kNN is of the algorithm's page, in parts measured on earlier weights."
    text += " **None of it has been repeated with `ssl_hub`**; the recipes are those that would."
    return "\n\n".join(["## Published results", _table(("protocol", "top-1", "recipe"), *rows), _wrapped(text)])


def _limits(model: PublishedModel, config: SSLConfig) -> str:
    size = config.image_size
    return "## Limits\n\n" + _wrapped(
        f"It knows photographs like those of ImageNet-1k, and their biases, at {size} x {size} pixels. It gives features, not "
        f"classes: what is built on them has to be tested on its own. {model.limits}".rstrip()
    )


def _citation(model: PublishedModel) -> str:
    paper = model.paper
    year = f"20{paper.arxiv_id[:2]}"
    first_author = "".join(filter(str.isalpha, paper.authors.partition(",")[0])).lower()
    return f"""## Citation

```bibtex
@article{{{first_author}{year},
  title = {{{paper.title}}},
  author = {{{paper.authors}}},
  journal = {{arXiv preprint arXiv:{paper.arxiv_id}}},
  year = {{{year}}}
}}
```"""


def _table(header: tuple[str, ...], *rows: tuple[str, ...]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)
