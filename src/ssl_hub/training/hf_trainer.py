"""Pretraining with transformers' own `Trainer`: views for its loader, a collator, and a callback for the model's hooks.

train_dataset = EpochViews(dataset, recipe.views, model.config, args.seed)
Trainer(
    model,
    args,
    train_dataset=train_dataset,
    data_collator=ViewCollator(model, recipe.views),
    callbacks=[SSLCallback(train_dataset)],
).train()
"""

import math
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..configuration_utils import SSLConfig
from ..data.datasets import load_image_dataset
from ..data.loading import ViewDataset, collate
from ..data.processing import Normalize, build_image_processor
from ..data.sampling import EpochBatchSampler
from ..data.views import build_views
from ..distributed import average_batchnorm_statistics, num_processes, synchronize_batchnorm
from ..evaluation.features import extract_dataset
from ..lifecycle import FeatureTable, Progress
from ..modeling_utils import SSLModel
from .optimization import drop_frozen_gradients
from .trainer import EPOCH_STREAM, STEP_STREAM, input_names, note_masks, seed_generators, use_channels_last


class EpochViews(Dataset):
    """The samples of an epoch, in the order of `SSLTrainer`, with the same views.

    `Trainer` says which epoch it is. Left in this order (`train_sampling_strategy="sequential"`), a run gets the batches that
    `SSLTrainer` gets by the same seed; an evaluation has the views of epoch 0.

    Args:
        dataset: as `SSLTrainer` takes it, with rows by index.
        views: a recipe's.
        config: of the model.
        seed: of order and views.

    Raises:
        ValueError: the dataset is streamed.

    Attributes:
        weights: by which the images of an epoch are drawn, `(N,)`; None for every image once.
    """

    def __init__(self, dataset: datasets.Dataset, views: list[dict], config: SSLConfig, seed: int):
        dataset = load_image_dataset(dataset)
        if isinstance(dataset, datasets.IterableDataset):
            raise ValueError(
                "EpochViews need a dataset with rows by index: load it without streaming, or train with SSLTrainer, which "
                "takes a stream"
            )
        self.dataset, self.config = dataset, config
        self.samples = ViewDataset(dataset, build_views(views, config.image_size), seed)
        self.order = EpochBatchSampler(len(dataset), batch_size=1, seed=seed)
        self.weights: torch.Tensor | None = None
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.order.set_epoch(epoch, weights=self.weights)
        self.keys = [key for (key,) in self.order]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, position: int) -> dict:
        return self.samples[self.keys[position]]

    def __getitems__(self, positions: list[int]) -> list[dict]:
        return self.samples.__getitems__([self.keys[position] for position in positions])


class Views(list):
    """The views of a batch, whose elements `Trainer` counts as those of one tensor."""

    def numel(self) -> int:
        return sum(view.numel() for view in self)


class ViewCollator:
    """Batches of [`EpochViews`]: what the `loss` of a model takes, normalised.

    Args:
        model: the algorithm.
        views: a recipe's.

    Raises:
        ValueError: the views do not make what the model takes, or make what it does not.
    """

    def __init__(self, model: SSLModel, views: list[dict]):
        config = model.config
        self.input_names = input_names(model, views)
        built_views = build_views(views, config.image_size)
        note_masks(model, built_views)
        self.normalize = Normalize(config.image_mean, config.image_std, built_views)

    def __call__(self, samples: list[dict]) -> dict:
        batch = self.normalize(collate(samples))
        if isinstance(batch["pixel_values"], list):
            batch["pixel_values"] = Views(batch["pixel_values"])
        return {name: batch[name] for name in self.input_names} | {"return_loss": True}


class SSLCallback(TrainerCallback):
    """Calls a model's hooks, as `SSLTrainer` does.

    Random generators are seeded from (seed, step, process) before every step, so that masks and dropout do not depend on
    what was drawn before.

    Args:
        train_dataset: that of the `Trainer`.
    """

    def __init__(self, train_dataset: EpochViews):
        self.train_dataset = train_dataset

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model=None, **kwargs):
        needed = {"remove_unused_columns": False, "dataloader_drop_last": True, "load_best_model_at_end": False}
        for name, value in needed.items():
            if getattr(args, name) != value:
                raise ValueError(
                    f"TrainingArguments need {name}={value} to pretrain with ssl_hub: see docs/transformers_trainer.md"
                )
        if num_processes() > 1 and model.sync_batchnorm:
            synchronize_batchnorm(model, args.device)
        model.begin_run(len(self.train_dataset))

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        use_channels_last(model, args.device)
        if state.global_step == 0:
            return
        # Trainer goes by the names in the model and a file has those of transformers 4: it would pass over some, without
        # an error. What `training_state` names, which `from_pretrained` leaves out, it does find.
        checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
        tensors = type(model).from_pretrained(checkpoint).state_dict()
        missing = model.load_state_dict(tensors, strict=False).missing_keys
        lacking = [name for name in missing if not name.startswith(tuple(model.training_state))]
        if lacking:
            raise ValueError(f"{checkpoint} lacks {', '.join(lacking[:3])}, so the run cannot resume from it")

    def on_epoch_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        progress = self._progress(args, state, **kwargs)
        if type(model).begin_epoch is SSLModel.begin_epoch:
            return
        if state.global_step % progress.steps_per_epoch:
            raise ValueError(
                f"{type(model).__name__} prepares every epoch, so a run resumes at the beginning of one: give "
                "TrainingArguments save_strategy='epoch'"
            )
        epoch = state.global_step // progress.steps_per_epoch
        seed_generators(args.device, args.seed, EPOCH_STREAM, epoch, process_index=0)
        self.train_dataset.weights = model.begin_epoch(progress, self._features(args, model))
        for parameter in model.redrawn_parameters:
            optimizer.state.pop(parameter, None)

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        model.begin_step(self._progress(args, state, **kwargs))
        for group in optimizer.param_groups:
            if group.get("constant_lr"):  # whatever the schedule says
                group["lr"] = group["initial_lr"]
        seed_generators(args.device, args.seed, STEP_STREAM, state.global_step, args.process_index)

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        if "frozen_epochs" in optimizer.param_groups[0]:  # of `build_optimizer`
            drop_frozen_gradients(optimizer, self._progress(args, state, **kwargs))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if not model.sync_batchnorm:
            average_batchnorm_statistics(model)
        model.end_step(self._progress(args, state, **kwargs))

    def _progress(self, args, state, train_dataloader=None, **kwargs) -> Progress:
        steps_per_epoch = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        return Progress(state.global_step, state.max_steps, steps_per_epoch)

    def _features(self, args: TrainingArguments, model: SSLModel) -> Callable[..., FeatureTable]:
        dataset, config = self.train_dataset.dataset, self.train_dataset.config
        processor = build_image_processor(config.image_size, config.image_mean, config.image_std)

        def features(extract: Callable[[torch.Tensor], torch.Tensor] | None = None) -> FeatureTable:
            return extract_dataset(
                model,
                dataset,
                processor,
                batch_size=args.per_device_eval_batch_size,
                num_workers=args.dataloader_num_workers,
                device=args.device,
                extract=extract,
            )

        return features
