"""The features of a model in training, and what its evaluators say about them."""

from collections.abc import Callable
from dataclasses import replace

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from transformers import BaseImageProcessor

from ..data.datasets import match_labels
from ..data.loading import build_eval_loader
from ..evaluation.base import Evaluator, LabelledFeatures
from ..evaluation.evaluators import build_evaluators
from ..evaluation.features import extract_feature_table, gather_feature_tables, process_rows
from ..evaluation.knn import KNNEvaluator
from ..lifecycle import FeatureTable
from ..modeling_utils import SSLModel
from .arguments import PretrainingArguments

_SAMPLE_STREAM = int.from_bytes(b"samp", "big")  # of random numbers; see `SSLTrainer`
# Training images that stand for an evaluation split where there is none.
_STAND_IN_SIZE = 2048


class RunEvaluation:
    """Evaluates a model on the features of a dataset; every process extracts those of a part of the images.

    Without an evaluation split a fixed sample of the training set is evaluated, by what needs no labels.

    Args:
        evaluation: what `build_evaluators` takes.
        train_dataset, eval_dataset: what `load_image_dataset` returns; no evaluation of a stream without the latter.

    Attributes:
        evaluators: there may be none.
        notes: lines for the user on what they are given.
    """

    def __init__(
        self,
        evaluation: list[dict] | None,
        train_dataset: datasets.Dataset | datasets.IterableDataset,
        eval_dataset: datasets.Dataset | None,
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
        for evaluator in self.evaluators:
            size = evaluator.max_train_samples
            if size is not None and size < len(train_dataset):
                self.notes.append(
                    f"the evaluation {evaluator.type!r} uses a fixed sample of {size} of the {len(train_dataset)} "
                    "training images"
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

    def __call__(self, model: SSLModel) -> tuple[dict[str, float], list[str]]:
        """The metrics of all evaluators, and what they warn of."""
        features = self._labelled_features(model, self.eval_dataset, "evaluation" if self.has_split else "training")
        train: dict[int | None, LabelledFeatures] = {}  # by the number of samples
        metrics: dict[str, float] = {}
        warnings = []
        for evaluator in self.evaluators:
            size = evaluator.max_train_samples
            if evaluator.needs_train_features and size not in train:
                train[size] = self._labelled_features(model, self._sample(self.train_dataset, size), "training")
            found = evaluator.evaluate(features, train[size] if evaluator.needs_train_features else None)
            metrics |= found
            warnings.append(evaluator.warning(found))
        return metrics, [warning for warning in warnings if warning is not None]

    def _sample(self, dataset: datasets.Dataset, size: int | None) -> datasets.Dataset:
        """The same images, of that number at most, at every evaluation of a run; all for None."""
        if size is None or size >= len(dataset):
            return dataset
        generator = np.random.default_rng([self.args.seed, _SAMPLE_STREAM])
        return dataset.select(np.sort(generator.choice(len(dataset), size, replace=False)))

    def feature_table(
        self, model: SSLModel, dataset: datasets.Dataset, extract: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> FeatureTable:
        """Features of every image of a dataset, the same on every process.

        Args:
            extract: from `pixel_values` `(B, C, H, W)` to features `(B, D)`; the pooled ones by default.
        """
        rows = process_rows(len(dataset))
        loader = build_eval_loader(
            dataset.select(rows),
            self.image_processor,
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
        )
        device = self.accelerator.device
        table = extract_feature_table(extract, model, loader, len(dataset), device, offset=rows.start)
        return gather_feature_tables(table, device)

    def _labelled_features(self, model: SSLModel, dataset: datasets.Dataset, what: str) -> LabelledFeatures:
        table = self.feature_table(model, dataset)
        if not table.known.any():
            raise ValueError(f"none of {len(dataset)} images of the {what} split can be read")
        labels = torch.tensor(dataset["label"])[table.known] if "label" in dataset.column_names else None
        return LabelledFeatures(table.features[table.known], labels)
