"""The features of a model in training, and what its evaluators say about them."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import BaseImageProcessor

from ..data.datasets import match_labels
from ..data.processing import Normalize
from ..data.views import View
from ..evaluation.base import Evaluator, LabelledFeatures
from ..evaluation.evaluators import build_evaluators, check_metric
from ..evaluation.feature_models import pixel_baseline
from ..evaluation.features import extract_dataset, known_rows
from ..evaluation.knn import KNNEvaluator
from ..evaluation.view_features import choose_views, extract_view_features
from ..lifecycle import FeatureTable
from ..modeling_utils import SSLModel
from ..visualization.model_pictures import RowImages, draw_neighbors, find_neighbors
from .arguments import PretrainingArguments
from .online_probe import OnlineProbe

_SAMPLE_STREAM = int.from_bytes(b"samp", "big")  # of random numbers; see `SSLTrainer`
# Training images that stand for an evaluation split where there is none.
_STAND_IN_SIZE = 2048
# Images at most that the kNN of pixels trains on and is evaluated on.
_PIXEL_TRAIN_SIZE, _PIXEL_EVAL_SIZE = 10_000, 2048


class RunEvaluation:
    """Evaluates a model on the features of a dataset; every process extracts those of a part of the images.

    Without an evaluation split a fixed sample of the training set is evaluated, by what needs no labels.

    Args:
        evaluation: what `build_evaluators` takes.
        train_dataset, eval_dataset: what `load_image_dataset` returns; no evaluation of a stream without the latter.
        views: of the run.

    Attributes:
        evaluators: there may be none.
        probe: the online probe, if there is one.
        neighbors: on the main process, draws the neighbours of some images as the last evaluation found them.
        notes: lines for the user on what they are given.
    """

    def __init__(
        self,
        evaluation: list[dict] | None,
        train_dataset: datasets.Dataset | datasets.IterableDataset,
        eval_dataset: datasets.Dataset | None,
        views: list[View],
        image_processor: BaseImageProcessor,
        accelerator: Accelerator,
        args: PretrainingArguments,
    ):
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.image_processor, self.accelerator, self.args = image_processor, accelerator, args
        self.notes: list[str] = []
        self.has_split = eval_dataset is not None
        is_streamed = isinstance(train_dataset, datasets.IterableDataset)
        if eval_dataset is None:
            self.evaluators = self._evaluators_without_a_split(evaluation, is_streamed)
        elif len(eval_dataset) == 0:
            raise ValueError("the evaluation split has no images: name another one, or none")
        else:
            self.eval_dataset = eval_dataset = match_labels(eval_dataset, train_dataset)
            self.evaluators = build_evaluators(
                evaluation,
                has_eval_labels="label" in eval_dataset.column_names,
                has_train_labels="label" in (train_dataset.column_names or ()),
                has_train_features=not is_streamed,
            )
        if args.knn_max_samples is not None:
            self.evaluators = [
                replace(evaluator, max_samples=args.knn_max_samples)
                if isinstance(evaluator, KNNEvaluator)
                else evaluator
                for evaluator in self.evaluators
            ]
        if args.keep_best is not None:
            try:
                check_metric(args.keep_best, self.evaluators)
            except ValueError as error:
                raise ValueError(f"--keep_best: {error}") from error
        self.views: dict[str, list[View]] = {}  # by the type of the evaluator
        self.probe: OnlineProbe | None = None
        self.neighbors: Callable[[Path], None] | None = None
        for evaluator in self.evaluators:
            if evaluator.input != "features":
                self._prepare_input(evaluator, views)
        for evaluator in self.evaluators:
            size = evaluator.max_train_samples
            if size is not None and size < len(train_dataset):
                self.notes.append(
                    f"the evaluation {evaluator.type!r} uses a fixed sample of {size} of the {len(train_dataset)} "
                    "training images"
                )

    def _prepare_input(self, evaluator: Evaluator, views: list[View]) -> None:
        """Makes what gives an evaluator its views, or its scores."""
        try:
            chosen = choose_views(views, evaluator.num_views if evaluator.input == "views" else 1)
        except ValueError as error:
            raise ValueError(f"the evaluation {evaluator.type!r} is not for this run: {error}; leave it out") from error
        if evaluator.input == "views":
            self.views[evaluator.type] = chosen
            return
        labels = [torch.tensor(dataset["label"][:]) for dataset in (self.train_dataset, self.eval_dataset)]
        self.probe = OnlineProbe(
            labels[0],
            num_classes=int(torch.cat(labels).max()) + 1,
            learning_rate=evaluator.learning_rate,
            chunk_size=self.args.per_device_eval_batch_size,
            device=self.accelerator.device,
        )

    def _evaluators_without_a_split(self, evaluation: list[dict] | None, is_streamed: bool) -> list[Evaluator]:
        evaluators = build_evaluators(evaluation)
        allowed = [each for each in evaluators if not each.needs_labels and not each.needs_train_features]
        if self.args.evaluation is not None and (is_streamed or allowed != evaluators):
            raise ValueError(
                "--evaluation needs images to evaluate on: name them with --eval_split or --validation_dir; got only "
                f"{self.args.evaluation!r}"
            )
        if is_streamed or not allowed:
            return []
        self.eval_dataset = self._sample(self.train_dataset, _STAND_IN_SIZE)
        self.notes.append(
            f"no evaluation split (--eval_split, --validation_dir): {', '.join(each.type for each in allowed)} of a fixed "
            f"sample of {len(self.eval_dataset)} training images"
        )
        return allowed

    def __call__(self, model: SSLModel) -> dict[str, float]:
        """The metrics of all evaluators."""
        table = self.feature_table(model, self.eval_dataset)
        features = _labelled(table, self.eval_dataset, "evaluation" if self.has_split else "training")
        if self.accelerator.is_main_process and len(features.features) > 1:
            rows = table.known.nonzero().flatten().tolist()
            self.neighbors = partial(
                draw_neighbors,
                find_neighbors(features),
                features.labels,
                RowImages(self.eval_dataset, rows),
                class_names=getattr(self.eval_dataset.features.get("label"), "names", None),
            )
        features = self._on_device(features)
        train: dict[int | None, LabelledFeatures] = {}  # by the number of samples
        metrics: dict[str, float] = {}
        for evaluator in self.evaluators:
            size = evaluator.max_train_samples
            if evaluator.needs_train_features and size not in train:
                train[size] = self._labelled_features(model, self._sample(self.train_dataset, size), "training")
            if evaluator.input == "scores" and self.probe.classifier is None:
                continue  # it has seen nothing yet
            inputs = self._input(evaluator, model, features)
            metrics |= evaluator.evaluate(inputs, train[size] if evaluator.needs_train_features else None)
        return metrics

    @property
    def num_passes(self) -> int:
        """Images, and views of images, that an evaluation computes features of."""
        banks = {each.max_train_samples for each in self.evaluators if each.needs_train_features}
        of_views = (
            min(each.num_images, len(self.eval_dataset)) * each.num_views
            for each in self.evaluators
            if each.input == "views"
        )
        return (
            len(self.eval_dataset) + sum(len(self._sample(self.train_dataset, size)) for size in banks) + sum(of_views)
        )

    def part(self, size: int) -> "RunEvaluation":
        """An evaluation of so many images at most, by what needs no labels, to see how long one takes."""
        part = copy(self)
        part.eval_dataset = self._sample(self.eval_dataset, size)
        part.evaluators = [each for each in self.evaluators if not each.needs_labels and not each.needs_train_features]
        return part

    def _input(self, evaluator: Evaluator, model: SSLModel, features: LabelledFeatures) -> LabelledFeatures:
        """What an evaluator takes of the evaluation set."""
        if evaluator.input == "scores":
            return LabelledFeatures(self.probe(features.features), features.labels)
        if evaluator.input == "features":
            return features
        views = self.views[evaluator.type]
        device, processor = self.accelerator.device, self.image_processor
        normalize = Normalize(processor.image_mean, processor.image_std, views).to(device)
        view_features = extract_view_features(
            model,
            self._sample(self.eval_dataset, evaluator.num_images),
            views,
            lambda pixels: normalize({"pixel_values": [view.to(device) for view in pixels]})["pixel_values"],
            seed=self.args.seed,
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            device=device,
        )
        return self._on_device(LabelledFeatures(view_features, None))

    def _on_device(self, features: LabelledFeatures) -> LabelledFeatures:
        return features._replace(features=features.features.to(self.accelerator.device))

    def accuracy_baselines(self) -> dict[str, float]:
        """What the accuracies of this run are to be compared with, see `ACCURACY_BASELINES`; empty without labels.

        The kNN of pixels has the settings of the run's kNN evaluation, and a bank of the same images, up to a number.
        """
        if not any(evaluator.needs_train_labels for evaluator in self.evaluators):
            return {}
        labels = torch.tensor(self.eval_dataset["label"][:])
        baselines = {"chance_accuracy": labels.bincount().max().item() / len(labels)}
        knn = next((each for each in self.evaluators if isinstance(each, KNNEvaluator)), KNNEvaluator())
        pixels, processor = pixel_baseline()
        train, test = (
            self._labelled_features(pixels, self._sample(dataset, size), what, processor)
            for dataset, size, what in (
                (self.train_dataset, min(knn.max_train_samples or _PIXEL_TRAIN_SIZE, _PIXEL_TRAIN_SIZE), "training"),
                (self.eval_dataset, _PIXEL_EVAL_SIZE, "evaluation"),
            )
        )
        baselines["pixel_knn_accuracy"] = knn.evaluate(self._on_device(test), train)["knn_accuracy"]
        return baselines

    def _sample(self, dataset: datasets.Dataset, size: int | None) -> datasets.Dataset:
        """The same images, of that number at most, at every evaluation of a run; all for None."""
        if size is None or size >= len(dataset):
            return dataset
        generator = np.random.default_rng([self.args.seed, _SAMPLE_STREAM])
        return dataset.select(np.sort(generator.choice(len(dataset), size, replace=False)))

    def feature_table(
        self,
        model: nn.Module,
        dataset: datasets.Dataset,
        extract: Callable[[torch.Tensor], torch.Tensor] | None = None,
        image_processor: BaseImageProcessor | None = None,
    ) -> FeatureTable:
        """Features of every image of a dataset, the same on every process.

        Args:
            extract: from `pixel_values` `(B, C, H, W)` to features `(B, D)`; the pooled ones by default.
            image_processor: by default that of the run.
        """
        return extract_dataset(
            model,
            dataset,
            image_processor or self.image_processor,
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            device=self.accelerator.device,
            extract=extract,
        )

    def _labelled_features(
        self,
        model: nn.Module,
        dataset: datasets.Dataset,
        what: str,
        image_processor: BaseImageProcessor | None = None,
    ) -> LabelledFeatures:
        return _labelled(self.feature_table(model, dataset, image_processor=image_processor), dataset, what)


def _labelled(table: FeatureTable, dataset: datasets.Dataset, what: str) -> LabelledFeatures:
    if not table.known.any():
        raise ValueError(f"none of {len(dataset)} images of the {what} split can be read")
    labels = torch.tensor(dataset["label"])[table.known] if "label" in dataset.column_names else None
    return LabelledFeatures(known_rows(table), labels)
