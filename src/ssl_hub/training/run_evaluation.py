"""The features of a model in training, and what its evaluators say about them."""

from collections.abc import Callable

import datasets
import torch
from accelerate import Accelerator
from transformers import BaseImageProcessor

from ..data.loading import build_eval_loader
from ..evaluation.evaluators import Evaluator, LabelledFeatures, check_evaluators
from ..evaluation.features import extract_feature_table, gather_feature_tables
from ..lifecycle import FeatureTable
from ..modeling_utils import SSLModel
from .arguments import PretrainingArguments


class RunEvaluation:
    """Evaluates a model on the features of a dataset; every process takes a part of the images.

    Args:
        evaluators: what `build_evaluators` returns.
        train_dataset, eval_dataset: what `load_image_dataset` returns; the latter may be None for no evaluation.
    """

    def __init__(
        self,
        evaluators: list[Evaluator],
        train_dataset: datasets.Dataset | datasets.IterableDataset,
        eval_dataset: datasets.Dataset | None,
        image_processor: BaseImageProcessor,
        accelerator: Accelerator,
        args: PretrainingArguments,
    ):
        self.evaluators, self.train_dataset, self.eval_dataset = evaluators, train_dataset, eval_dataset
        self.image_processor, self.accelerator, self.args = image_processor, accelerator, args
        if eval_dataset is not None:
            check_evaluators(evaluators, train_dataset, eval_dataset)

    def __call__(self, model: SSLModel) -> tuple[dict[str, float], list[str]]:
        """The metrics of all evaluators, and what they warn of."""
        features = self._labelled_features(model, self.eval_dataset)
        train = None
        if any(evaluator.needs_train_features for evaluator in self.evaluators):
            train = self._labelled_features(model, self.train_dataset)
        metrics, warnings = {}, []
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

    def _labelled_features(self, model: SSLModel, dataset: datasets.Dataset) -> LabelledFeatures:
        table = self.feature_table(model, dataset)
        labels = torch.tensor(dataset["label"]) if "label" in dataset.column_names else None
        return LabelledFeatures(table.features[table.known], None if labels is None else labels[table.known])
