"""Evaluates models on a dataset, side by side, and writes a report with pictures.

    ssl-hub evaluate --model_name_or_path demo --dataset_name digits --output_dir report
    accelerate launch -m ssl_hub evaluate --model_name_or_path demo timm/resnet18.a1_in1k --dataset_name digits \
        --protocols knn,linear,label_free --baselines pixels,untrained --output_dir report

The report is report.md with its pictures, report.html, which is complete in one file, and results.json. The card of one of
our models gets the results too. Features are extracted on all processes and kept in the folder features, so that
an evaluation that was stopped resumes, and one with other protocols begins with them.
"""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import datasets
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image
from transformers import BaseImageProcessor
from transformers.utils.logging import disable_progress_bar

from ..data.datasets import match_labels
from ..data.views import build_views
from ..evaluation.base import LabelledFeatures
from ..evaluation.embeddings import extract_embeddings, readable_rows
from ..evaluation.evaluators import METRICS, Evaluator, build_evaluators, describe_metrics
from ..evaluation.feature_models import load_feature_model, pixel_baseline, untrained_model
from ..evaluation.knn import KNNEvaluator, knn_classify
from ..evaluation.label_free import describe_collapse
from ..evaluation.view_features import extract_view_features
from ..field_types import PositiveInt
from ..hub.evaluation_report import EvaluationReport, ModelReport
from ..hub.model_card import add_eval_results, build_eval_results
from ..modeling_utils import SSLModel
from ..printing import set_up_logging
from ..visualization.curves import plot_training_curves
from ..visualization.embeddings import check_map_method
from ..visualization.model_pictures import (
    RowImages,
    choose_examples,
    draw_feature_pictures,
    draw_patch_pictures,
)
from ..visualization.results import plot_comparison, plot_confusion_matrix
from . import parse
from .arguments import FeatureArguments

BASELINES = ("pixels", "untrained")

# What papers call a protocol, where its evaluator has another name.
PROTOCOL_NAMES = {"linear": "linear_probe"}

NUM_PATCH_PICTURES = 6

# What the protocol `views` compares, of whatever model: crops and colors as in MoCo v2.
VIEW = {
    "scale": [0.2, 1.0],
    "hflip": 0.5,
    "color_jitter": {"p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "grayscale": 0.2,
    "gaussian_blur": {"p": 0.5},
}

# Models from which on their ranks by a metric are compared with those by kNN.
MIN_RANKED_MODELS = 5


@dataclass(kw_only=True)
class EvaluationArguments(FeatureArguments):
    model_name_or_path: list[str] = field(
        metadata={"help": "Folders or Hub ids of our models, or of any of transformers or timm."}
    )
    output_dir: str = field(default="evaluation", metadata={"help": "Where the report goes."})
    protocols: str = field(
        default="knn,linear,clustering,label_free",
        metadata={"help": "By comma, or with options as YAML: '[{type: knn, k: 200}, {type: label_free}]'."},
    )
    baselines: str = field(
        default="pixels", metadata={"help": f"What to compare with, by comma, of {', '.join(BASELINES)}; or none."}
    )
    train_split: str = field(default="train", metadata={"help": "Split that the protocols train on."})
    eval_split: str = field(default="test", metadata={"help": "Split that they are evaluated on."})
    label_column_name: str | None = field(
        default=None, metadata={"help": "Found by its type when not given; for the SVMs also lists of classes."}
    )
    map_method: str = field(default="tsne", metadata={"help": "Of the map of images.", "choices": ["tsne", "umap"]})
    per_device_eval_batch_size: PositiveInt = field(default=64, metadata={"help": "Images a process and forward pass."})

    def __post_init__(self):
        super().__post_init__()
        check_map_method(self.map_method)


@dataclass
class Split:
    """One side of the evaluation: the images, their labels where there are any, and their features by a model."""

    name: str
    dataset: datasets.Dataset
    labels: Tensor | None  # targets `(N, C)` where an image may have several
    embeddings: datasets.Dataset | None = None

    def features(self) -> LabelledFeatures:
        """Of the images that can be read."""
        readable = readable_rows(self.embeddings)
        embeddings = self.embeddings.select_columns("embedding").with_format("torch")[:]["embedding"]
        return LabelledFeatures(embeddings[readable], None if self.labels is None else self.labels[readable])


def main(args: list[str]) -> None:
    set_up_logging()
    args = parse("evaluate", EvaluationArguments, args)
    disable_progress_bar()
    datasets.disable_progress_bars()
    baselines = parse_baselines(args.baselines)
    check_names([*args.model_name_or_path, *baselines])
    train_dataset, test_dataset = (
        args.load_split(split, several_labels=True) for split in (args.train_split, args.eval_split)
    )
    test_dataset = match_labels(test_dataset, train_dataset)
    train_labels, test_labels = read_labels(train_dataset, test_dataset)
    train = Split(args.train_split, train_dataset, train_labels)
    test = Split(args.eval_split, test_dataset, test_labels)
    evaluators = build_evaluators(
        parse_protocols(args.protocols),
        has_eval_labels=test.labels is not None,
        has_train_labels=train.labels is not None,
        has_train_batches=False,
    )
    check_labels(evaluators, test.labels)
    splits = [test, train] if any(evaluator.needs_train_features for evaluator in evaluators) else [test]
    accelerator = Accelerator()
    views: dict[str, Tensor] = {}
    shared: dict[str, dict[str, dict[str, float]]] = {}  # metrics by model and protocol
    for name, model, image_processor in load_models(args.model_name_or_path, baselines, args.pooling):
        for split in splits:
            split.embeddings = extract_embeddings(
                model,
                image_processor,
                split.dataset,
                features_folder(args, name, split),
                batch_size=args.per_device_eval_batch_size,
                num_workers=args.dataloader_num_workers,
            )
        for evaluator in evaluators:
            if evaluator.input == "views":
                views[name] = features_of_views(evaluator, model, image_processor, test.dataset, args)
        shared[name] = evaluate_together(evaluators, train, test)
    if not accelerator.is_main_process:
        return

    # Only now, as the other processes would not wait for a protocol that takes long.
    pictures = Path(args.output_dir) / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    chance = chance_levels(evaluators, test.labels)
    reports, ours = [], set()
    for name, model, image_processor in load_models(args.model_name_or_path, baselines, args.pooling):
        for split in splits:
            split.embeddings = datasets.load_from_disk(str(features_folder(args, name, split)))
        report = evaluate(name, evaluators, train, test, views.get(name), shared[name])
        print(f"{name}: {describe_metrics(report.metrics)}", flush=True)
        for note in report.notes:
            print(f"  {note}")
        report.pictures = draw_pictures(report, model, image_processor, evaluators, train, test, args)
        reports.append(report)
        if isinstance(model, SSLModel) and name not in baselines:
            ours.add(name)
    for report in reports:
        levels = {"chance": chance} | {other.name: other.metrics for other in reports if other.name in BASELINES}
        report.pictures |= draw_curves(report, args, levels)
    plot_comparison({report.name: report.metrics for report in reports}, pictures / "comparison.png", chance=chance)
    settings = {"dataset": args.dataset_name, "evaluated on": f"{args.eval_split} ({len(test.dataset)} images)"}
    if train.embeddings is not None:
        settings["protocols train on"] = f"{args.train_split} ({len(train.dataset)} images)"
    settings["protocols"] = ", ".join(describe_protocol(evaluator) for evaluator in evaluators)
    correlations = rank_correlations([report for report in reports if report.name not in BASELINES])
    EvaluationReport(settings, reports, chance, pictures / "comparison.png", correlations).write(args.output_dir)
    for name, correlation in correlations.items():
        print(f"Spearman's rank correlation of {METRICS[name].title} with kNN accuracy: {correlation:.2f}")
    for report in reports:
        if report.name in ours:
            add_to_card(report, args)
    print(f"the report is {Path(args.output_dir) / 'report.html'}")


def parse_baselines(text: str) -> list[str]:
    names = [] if text == "none" else text.split(",")
    if unknown := [name for name in names if name not in BASELINES]:
        raise ValueError(f"--baselines takes {', '.join(BASELINES)} or none; got {', '.join(unknown)}")
    return names


def check_names(names: list[str]) -> None:
    files = [file_name(name) for name in names]
    if repeated := [name for name, file in zip(names, files, strict=True) if files.count(file) > 1]:
        raise ValueError(f"models and baselines need names of their own in the report; got {', '.join(repeated)}")


def parse_protocols(text: str) -> list[dict]:
    if text.startswith("["):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"--protocols {text!r} is not YAML: {error}") from error
    return [{"type": PROTOCOL_NAMES.get(name, name)} for name in text.split(",")]


def describe_protocol(evaluator: Evaluator) -> str:
    text = ", ".join(f"{name} {value}" for name, value in asdict(evaluator).items() if value is not None)
    return evaluator.type + (f" ({text})" if text else "")


def read_labels(*splits: datasets.Dataset) -> list[Tensor | None]:
    """Of each split the labels `(N,)`, or targets `(N, C)` where the labels are lists; None without labels."""
    features = [split.features.get("label") for split in splits]
    if not any(isinstance(feature, datasets.List | datasets.LargeList) for feature in features):
        return [torch.tensor(split["label"][:]) if "label" in split.column_names else None for split in splits]
    if features[0] != features[1]:
        raise ValueError(
            "labels that are lists must be of the same type and classes in both splits; they are "
            f"{features[0]} and {features[1]}"
        )
    lists = [split["label"][:] for split in splits]
    num_classes = 1 + max((label for rows in lists for row in rows for label in row), default=0)
    targets = [torch.zeros(len(rows), num_classes, dtype=torch.long) for rows in lists]
    for rows, each in zip(lists, targets, strict=True):
        for row, labels in enumerate(rows):
            each[row, labels] = 1
    return targets


def check_labels(evaluators: list[Evaluator], labels: Tensor | None) -> None:
    if labels is not None and labels.ndim == 2:
        single = [each.type for each in evaluators if each.needs_labels and not each.takes_several_labels]
        if single:
            raise ValueError(
                f"the labels are lists of classes, and {', '.join(single)} takes one class an image: choose among svm, "
                "low_shot_svm and label_free, or another --label_column_name"
            )


def load_models(names: list[str], baselines: list[str], pooling: str | None):
    """Yields name, model and image processor, one model after the other; the baselines last."""
    for name in names:
        yield name, *load_feature_model(name, pooling)
    if "untrained" in baselines:
        model, image_processor = load_feature_model(names[0], pooling)
        yield "untrained", untrained_model(model), image_processor
    if "pixels" in baselines:
        yield "pixels", *pixel_baseline()


def chance_levels(evaluators: list[Evaluator], labels: Tensor | None) -> dict[str, float]:
    """What naming the most frequent class every time would reach."""
    trained = [evaluator for evaluator in evaluators if evaluator.needs_train_labels]
    names = [
        name for evaluator in trained for name, metric in evaluator.metrics.items() if metric.hub_type == "accuracy"
    ]
    return {name: float(labels.bincount().max() / len(labels)) for name in names}


def sample(count: int, size: int) -> Tensor:
    """Rows of `count`, the same ones each time."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:size].sort().values


def features_of_views(
    evaluator: Evaluator, model: nn.Module, image_processor: BaseImageProcessor, dataset: datasets.Dataset, args
) -> Tensor:
    """Features `(N, V, D)` of views of a sample of images, alike for every model but for the size that it takes."""

    def prepare(views: list[Tensor]) -> list[Tensor]:
        return [image_processor([to_pil_image(x) for x in view], return_tensors="pt")["pixel_values"] for view in views]

    size = image_processor(Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"].shape[-1]
    return extract_view_features(
        model,
        dataset.select(sample(len(dataset), evaluator.num_images)),
        build_views([{**VIEW, "size": size, "count": evaluator.num_views}]),
        prepare,
        seed=0,
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        device=Accelerator().device,
    )


def rank_correlations(reports: list[ModelReport]) -> dict[str, float]:
    """Spearman's correlation of each metric with the kNN accuracy over many models; empty for few, or without kNN."""
    if len(reports) < MIN_RANKED_MODELS or not all("knn_accuracy" in report.metrics for report in reports):
        return {}
    shared = [name for name in METRICS if all(name in report.metrics for report in reports) and name != "knn_accuracy"]
    ranked = {name: [METRICS[name].goodness(report.metrics[name]) for report in reports] for name in shared}
    accuracies = [report.metrics["knn_accuracy"] for report in reports]
    return {
        name: float(spearmanr(values, accuracies).statistic)
        for name, values in ranked.items()
        if len(set(values)) > 1 and len(set(accuracies)) > 1
    }


def train_sample(evaluator: Evaluator, features: LabelledFeatures | None) -> LabelledFeatures | None:
    """The training features that a protocol takes; of those that want a sample, the same one each time."""
    if not evaluator.needs_train_features:
        return None
    size = evaluator.max_train_samples
    if size is None or size >= len(features.features):
        return features
    chosen = sample(len(features.features), size)
    return LabelledFeatures(features.features[chosen], None if features.labels is None else features.labels[chosen])


def on_device(features: LabelledFeatures) -> LabelledFeatures:
    return features._replace(features=features.features.to(Accelerator().device))


def evaluate_together(evaluators: list[Evaluator], train: Split, test: Split) -> dict[str, dict[str, float]]:
    """By protocol the metrics of those whose work the processes share, the same on every process."""
    sharing = [evaluator for evaluator in evaluators if evaluator.shares_work]
    if not sharing:
        return {}
    features = on_device(test.features())
    train_features = train.features() if train.embeddings is not None else None
    return {each.type: each.evaluate(features, train_sample(each, train_features)) for each in sharing}


def evaluate(
    name: str,
    evaluators: list[Evaluator],
    train: Split,
    test: Split,
    views: Tensor | None,
    shared: dict[str, dict[str, float]],
) -> ModelReport:
    features = on_device(test.features())
    train_features = train.features() if train.embeddings is not None else None
    report = ModelReport(name, {})
    for evaluator in evaluators:
        if evaluator.type in shared:
            report.metrics |= shared[evaluator.type]
        else:
            inputs = on_device(LabelledFeatures(views, None)) if evaluator.input == "views" else features
            report.metrics |= evaluator.evaluate(inputs, train_sample(evaluator, train_features))
    if (collapse := describe_collapse(report.metrics)) is not None:
        report.notes.append(f"The features have collapsed: {collapse}")
    unreadable = len(test.dataset) - len(features.features)
    if train_features is not None:
        unreadable += len(train.dataset) - len(train_features.features)
    if unreadable:
        report.notes.append(f"{unreadable} images cannot be read and were left out.")
    return report


def draw_pictures(
    report: ModelReport, model, image_processor, evaluators: list[Evaluator], train: Split, test: Split, args
) -> dict[str, Path]:
    prefix = picture_prefix(report, args)
    class_names = getattr(test.dataset.features.get("label"), "names", None)
    features = test.features()
    if features.labels is not None and features.labels.ndim == 2:
        features = features._replace(labels=None)  # a colour or a title is that of one class
    images = RowImages(test.dataset, readable_rows(test.embeddings).nonzero().flatten().tolist())
    drawn = draw_feature_pictures(features, images, prefix, class_names=class_names, map_method=args.map_method)
    for evaluator in evaluators:
        if isinstance(evaluator, KNNEvaluator):
            bank, labels = train_sample(evaluator, train.features())
            num_classes = int(max(labels.max(), features.labels.max())) + 1
            k = min(evaluator.k, len(bank))
            queries = on_device(features).features
            scores = knn_classify(bank, labels, queries, num_classes, k, evaluator.temperature)
            path = Path(f"{prefix}-confusion.png")
            plot_confusion_matrix(features.labels, scores.argmax(dim=1).cpu(), path, class_names=class_names)
            drawn[f"Confusion matrix of kNN (k {k}), % of a class"] = path
    if hasattr(model, "backbone"):
        examples = choose_examples(features.labels, len(images), NUM_PATCH_PICTURES)
        drawn |= draw_patch_pictures(model, image_processor, [images[index] for index in examples], prefix)
    return drawn


def draw_curves(report: ModelReport, args: EvaluationArguments, levels: dict[str, dict[str, float]]) -> dict[str, Path]:
    """The curves of the run that made a model, if it was evaluated on the same images."""
    metrics, recipe = (Path(report.name) / name for name in ("metrics.jsonl", "recipe.yaml"))
    if not metrics.exists() or not recipe.exists():
        return {}
    training = yaml.safe_load(recipe.read_text())["training"]
    same = {"dataset_name": args.dataset_name, "train_split": args.train_split, "eval_split": args.eval_split}
    if any(training.get(name) != value for name, value in same.items()):
        return {}
    path = Path(f"{picture_prefix(report, args)}-curves.png")
    plot_training_curves(metrics, path, levels)
    return {"Curves of the run that made it": path}


def add_to_card(report: ModelReport, args: EvaluationArguments) -> None:
    card = Path(report.name) / "README.md"
    results = build_eval_results(report.metrics, args.dataset_name, args.eval_split)
    if results and card.is_file():
        add_eval_results(card, results)
        print(f"{card} has the results {', '.join(result.metric_name for result in results)}")


def features_folder(args: EvaluationArguments, name: str, split: Split) -> Path:
    return Path(args.output_dir) / "features" / f"{file_name(name)}-{file_name(split.name)}"


def picture_prefix(report: ModelReport, args: EvaluationArguments) -> str:
    return f"{args.output_dir}/pictures/{file_name(report.name)}"


def file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")
