"""The features of a model in training, and what its evaluators say about them."""

from collections.abc import Callable

import datasets
import torch
from accelerate import Accelerator
from transformers import BaseImageProcessor

from ..data.datasets import match_labels
from ..data.loading import build_eval_loader
from ..evaluation.base import LabelledFeatures
from ..evaluation.evaluators import build_evaluators
from ..evaluation.features import extract_feature_table, gather_feature_tables, process_rows
from ..lifecycle import FeatureTable
from ..modeling_utils import SSLModel
from .arguments import PretrainingArguments


class RunEvaluation:
    """Evaluates a model on the features of a dataset; every process extracts those of a part of the images.

    Args:
        evaluation: what `build_evaluators` takes.
        train_dataset, eval_dataset: what `load_image_dataset` returns; no evaluation without the latter.
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
        self.evaluators = []
        if eval_dataset is None and args.evaluation is not None:
            raise ValueError(
                "--evaluation needs images to evaluate on: name them with --eval_split or --validation_dir"
            )
        if eval_dataset is not None:
            self.eval_dataset = eval_dataset = match_labels(eval_dataset, train_dataset)
            self.evaluators = build_evaluators(
                evaluation,
                has_eval_labels="label" in eval_dataset.column_names,
                has_train_labels="label" in (train_dataset.column_names or ()),
                has_train_features=not isinstance(train_dataset, datasets.IterableDataset),
            )

    def __call__(self, model: SSLModel) -> tuple[dict[str, float], list[str]]:
        """The metrics of all evaluators, and what they warn of."""
        features = self._labelled_features(model, self.eval_dataset)
        train = None
        if any(evaluator.needs_train_features for evaluator in self.evaluators):
            train = self._labelled_features(model, self.train_dataset)
        metrics: dict[str, float] = {}
        warnings = []
        for evaluator in self.evaluators:
            found = evaluator.evaluate(features, train)
            metrics |= found
            warnings.append(evaluator.warning(found))
        return metrics, [warning for warning in warnings if warning is not None]

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

    def _labelled_features(self, model: SSLModel, dataset: datasets.Dataset) -> LabelledFeatures:
        table = self.feature_table(model, dataset)
        labels = torch.tensor(dataset["label"])[table.known] if "label" in dataset.column_names else None
        return LabelledFeatures(table.features[table.known], labels)
