"""The model card of a pretrained model: metadata for the Hub and what a reader needs to use it."""

import os
import re
from collections.abc import Mapping, Sequence

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..configuration_utils import SSLConfig
from ..evaluation.evaluators import ACCURACY_BASELINES, METRICS
from ..printing import printable


def build_model_card(
    config: SSLConfig,
    *,
    recipe_name: str | None = None,
    config_overrides: str | None = None,
    initial_weights: str | None = None,
    dataset_name: str | None = None,
    training_arguments: dict | None,
    metrics: list[dict],
    best: dict | None = None,
    repo_id: str | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    has_reconstruction: bool = False,
) -> ModelCard:
    """A model card that states what was trained, on what, how, with which results, and how to load it.

    Args:
        config: its class attribute `paper`, if it has one, is cited and linked by the arXiv id in it.
        recipe_name: the recipe that the run started from, or the path of its file.
        config_overrides: what was changed of the recipe's model.
        initial_weights: the model that the run started from, a folder or a name on the Hub.
        dataset_name: named in the metadata too when it is a name on the Hub.
        training_arguments: shown as a table; credentials, paths and None are left out.
        metrics: the records of `metrics.jsonl`; results are the last value of each metric that an evaluator knows.
        best: metric, value and step of the run's best evaluation, whose checkpoint was kept; these are the last weights.
        repo_id: "owner/name" on the Hub, used by the code that shows how to load the model.
        license: a license identifier of the Hub; None to state none.
        tags: for the metadata, besides the card's own.
        has_reconstruction: whether `reconstruction.png` lies beside the card. `curves.png` is taken to be there when
            `metrics` hold a loss.

    Of a local path only the last part is shown. What others have named is shown without its markup.
    """
    is_as_recipe = recipe_name and not config_overrides and not initial_weights
    own_name = _last_part(recipe_name).removesuffix(".yaml") if is_as_recipe else config.model_type
    model_name = re.sub(r"[^\w.-]+", "-", repo_id.split("/")[-1] if repo_id else own_name)
    is_hub_dataset = dataset_name is not None and _is_hub_name(dataset_name)
    shown_dataset = _shown_name(dataset_name) if dataset_name is not None else None
    final = {key: value for record in metrics for key, value in record.items() if value is not None}

    eval_results = build_eval_results(final, dataset_name) if dataset_name is not None else []
    data = ModelCardData(
        license=license,
        # Not "transformers": the Hub would then show code that loads the root without `import ssl_hub`, and fails.
        library_name="ssl_hub",
        pipeline_tag="image-feature-extraction",
        tags=list(dict.fromkeys(["self-supervised-learning", "vision", config.model_type, *map(printable, tags)])),
        datasets=[dataset_name] if is_hub_dataset else None,
        eval_results=eval_results or None,
        model_name=model_name if eval_results else None,
    )

    sections = [
        f"# {model_name}",
        _introduction(config, shown_dataset),
        how_to_load(repo_id or "path/to/this/folder", config),
        _how_to_continue(repo_id or "path/to/this/folder", recipe_name),
        _training(recipe_name, config_overrides, initial_weights, training_arguments),
        _results(final, best),
    ]
    if "loss" in final:
        sections.append("![Training curves](curves.png)")
    if has_reconstruction:
        sections.append("![Original, masked and reconstructed images](reconstruction.png)")
    text = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def build_eval_results(metrics: Mapping[str, float], dataset_name: str, split: str | None = None) -> list[EvalResult]:
    """The metrics that the Hub has a name for, as the results in a card's metadata.

    Args:
        metrics: values by name; what no evaluator knows is left out.
        dataset_name: of a local path only the last part is shown.
        split: of the dataset, if it is to be named.
    """
    shown = _shown_name(dataset_name)
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=shown,
            dataset_name=shown,
            dataset_split=split,
            metric_type=metric.hub_type,
            metric_name=metric.title,
            metric_value=round(metrics[name], 4),
        )
        for name, metric in METRICS.items()
        if metric.hub_type is not None and name in metrics
    ]


def add_eval_results(card_path: str | os.PathLike, results: list[EvalResult]) -> None:
    """Adds results to a card's metadata. One of the same metric on the same split takes the place of the older one.

    Args:
        card_path: a `README.md`; its text is left alone.
    """
    card = ModelCard.load(card_path)
    kept = [old for old in card.data.eval_results or [] if not any(new.is_equal_except_value(old) for new in results)]
    card.data.eval_results = kept + results
    card.data.model_name = card.data.model_name or os.path.basename(os.path.dirname(os.path.abspath(card_path)))
    card.save(card_path)


def _is_hub_name(name: str) -> bool:
    # "digits" is the data set that scikit-learn ships, the default that needs no network.
    if name == "digits" or os.path.exists(name):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _shown_name(name: str) -> str:
    return name if _is_hub_name(name) else _last_part(name)


def _last_part(path: str) -> str:
    """Of a path or an address: neither the machine's folders nor the credentials of a query are anyone's business."""
    return printable(re.split(r"[?#]", path)[0].replace("\\", "/").rstrip("/").rpartition("/")[2]) or "unnamed"


def _code(text: object) -> str:
    """Text between backticks, where Markdown and HTML mean nothing."""
    return "`" + " ".join(printable(text).replace("`", "'").split()) + "`"


def _introduction(config: SSLConfig, dataset: str | None) -> str:
    text = f"A vision model pretrained without labels, by the algorithm `{config.model_type}`"
    if config.paper:
        arxiv_id = re.search(r"\d{4}\.\d{4,5}", config.paper)
        text += f" ([{config.paper}](https://arxiv.org/abs/{arxiv_id[0]}))" if arxiv_id else f" ({config.paper})"
    text += f", with a `{config.backbone_config.model_type}` backbone"
    if dataset is not None:
        text += f", on the data set {_code(dataset)}"
    return text + "."


def how_to_load(name: str, config: SSLConfig) -> str:
    """The section of a card with code for the model's features and for its backbone.

    Args:
        name: of the repository, or the path of the folder.
    """
    backbone_config = config.backbone_config
    about_backbone, import_line = "a plain transformers model that needs no `ssl_hub`", ""
    if not type(backbone_config).__module__.startswith("transformers."):
        package = type(backbone_config).__module__.partition(".")[0]
        about_backbone = f"a `{backbone_config.model_type}`, which transformers knows when `{package}` is imported"
        import_line = f"import {package}\n"
    elif backbone_config.model_type == "timm_wrapper":
        about_backbone += ", but timm"
    note = config.backbone_note and f" {config.backbone_note}"
    return f"""## How to use

Features of an image, with `ssl_hub` installed:

```python
import ssl_hub  # registers the algorithm with the Auto classes
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

image_processor = AutoImageProcessor.from_pretrained("{name}")
model = AutoModel.from_pretrained("{name}").eval()
inputs = image_processor(Image.open("image.jpg").convert("RGB"), return_tensors="pt")
features = model(**inputs).pooler_output  # (1, D)
```

The backbone alone, {about_backbone}. Use its `last_hidden_state`: the pooling layer that transformers adds to some
backbones, such as ViT, was not trained.{note}

```python
{import_line}from transformers import AutoModel

backbone = AutoModel.from_pretrained("{name}", subfolder="backbone")
```"""


def _how_to_continue(name: str, recipe_name: str | None) -> str:
    # A file is not there for the reader, and a name may be hostile.
    known = recipe_name is not None and re.fullmatch(r"[a-z0-9-]+", recipe_name)
    return f"""To continue pretraining on images of your own, with the algorithm's own neck and head:

```bash
ssl-hub pretrain --recipe {recipe_name if known else "RECIPE"} --model_name_or_path {name} \\
  --train_dir path/to/images --output_dir out
```"""


# An absolute path or an address, at the beginning or within, as in "[/home/me]", "~/x", "../x" and "C:\\x".
_PATH = re.compile(r"(?<![\w.])[~/]|\.\./|\b[A-Za-z]:\\|://")


def _training(
    recipe_name: str | None,
    config_overrides: str | None,
    initial_weights: str | None,
    training_arguments: dict | None,
) -> str:
    lines = []
    if recipe_name:
        changes = ", its model changed" if config_overrides else ""
        if config_overrides and not _PATH.search(config_overrides):
            changes += f" by {_code(config_overrides)}"
        lines.append(f"Recipe: {_code(_last_part(recipe_name))}{changes}.")
    if initial_weights:
        lines.append(f"The weights that training started from: {_code(_shown_name(initial_weights))}.")
    shown = {
        key: value
        for key, value in (training_arguments or {}).items()
        if value is not None and "token" not in key and not key.endswith("_dir") and not _PATH.search(str(value))
    }
    if shown:
        lines.append(_table("Argument", {_code(key): _code(value) for key, value in shown.items()}))
    return "\n\n".join(["## Training", *lines]) if lines else ""


def _results(final: dict, best: dict | None) -> str:
    shown = {metric.shown_title: metric.format(final[name]) for name, metric in METRICS.items() if name in final}
    baselines = [f"{title} {final[name]:.2%}" for name, title in ACCURACY_BASELINES.items() if name in final]
    if baselines:
        accuracies = [metric.shown_title for metric in METRICS.values() if metric.hub_type == "accuracy"]
        for title in shown.keys() & accuracies:
            shown[title] += f" ({', '.join(baselines)})"
    if "loss" in final:
        shown["last logged training loss"] = f"{final['loss']:.4g}"
    if not shown:
        return ""
    text = "## Results\n\n" + _table("Metric", shown)
    if best is not None:
        metric = METRICS[best["metric"]]
        text += (
            f"\n\nThese are the weights of the last step. The best {metric.title} of the run, "
            f"{metric.format(best['value'])}, was that of step {best['step']}: `checkpoint-{best['step']}` in the folder of "
            "the run."
        )
    return text


def _table(header: str, rows: dict[str, str]) -> str:
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in rows.items())
    cells = [f"| {name} | {value} |" for name, value in escaped]
    return "\n".join([f"| {header} | Value |", "|---|---|", *cells])
