"""The pretraining loop: prepare, train, log, evaluate, checkpoint, resume, share."""

import inspect
import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NoReturn

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from safetensors import SafetensorError
from torch import nn

from ..data.caching import cache_images
from ..data.datasets import load_image_dataset
from ..data.loading import build_train_loader
from ..data.processing import Normalize, build_image_processor
from ..data.rendering import BatchRenderer
from ..data.views import INPUT_KEYS, View, build_views
from ..data.workers import close_loader, explain_worker_errors
from ..distributed import average_batchnorm_statistics, synchronize_batchnorm
from ..evaluation.evaluators import describe_metrics
from ..hub.publishing import check_can_push, publish
from ..lifecycle import FeatureTable, Progress
from ..modeling_masked_image import MaskedPatchModel
from ..modeling_utils import SSLModel
from ..modules.backbones import is_convolutional
from ..modules.clustering import normalized_mutual_information
from ..pretrained import find_non_finite
from .arguments import DataArguments, ModelArguments, PretrainingArguments
from .best_checkpoint import BestCheckpoint
from .checkpointing import (
    CheckpointWriter,
    check_output_dir,
    clear_the_way,
    find_checkpoint,
    load_checkpoint,
    lock_output_dir,
    optimizer_state,
    read_state,
    tensors_of,
)
from .interruption import StopSignals
from .optimization import Schedule, build_optimizer, count_warmup_steps, describe_groups, drop_frozen_gradients
from .recipes import read_yaml, save_recipe
from .results import write_results
from .run_evaluation import RunEvaluation
from .run_log import RunLog, build_trackers, check_trackers
from .run_report import RunReport
from .timing import describe_time

logger = logging.getLogger(__name__)

# What each stream of random numbers is for; with a run's seed, a number and the process they make a seed.
STEP_STREAM, EPOCH_STREAM = range(2)


class SSLTrainer:
    """Trains any `SSLModel` with Accelerate.

    A run is a function of its arguments: order and views come from (seed, epoch, index), and before every step the
    random generators are seeded from (seed, step, process). So a run that was killed and resumed ends like one that was
    not, bit for bit on a CPU.

    Args:
        model: the algorithm, on the CPU.
        args: see `PretrainingArguments`.
        train_dataset: a dataset of images, with columns of any names that `load_image_dataset` finds. Of a `DatasetDict`
            "train" is trained on; "validation", or else "test", is evaluated on if there is no `eval_dataset`.
        views: a recipe's views, see `build_views`.
        eval_dataset: a split to evaluate features on, see `evaluation`; by default a sample of the training set.
        evaluation: a recipe's evaluators, see `build_evaluators`; by default the kNN accuracy and signs of collapse.
            `args.evaluation` takes their place.
        recipe_name, data_args, model_args: for the model card and `recipe.yaml`.
    """

    def __init__(
        self,
        model: SSLModel,
        args: PretrainingArguments,
        train_dataset: datasets.Dataset | datasets.IterableDataset | datasets.DatasetDict,
        views: list[dict],
        eval_dataset: datasets.Dataset | None = None,
        evaluation: list[dict] | None = None,
        recipe_name: str | None = None,
        data_args: DataArguments | None = None,
        model_args: ModelArguments | None = None,
    ):
        if isinstance(train_dataset, dict) and eval_dataset is None:
            eval_dataset = train_dataset.get("validation", train_dataset.get("test"))
        train_dataset = load_image_dataset(train_dataset)
        eval_dataset = None if eval_dataset is None else load_image_dataset(eval_dataset)
        self.args, self.train_dataset, self.eval_dataset = args, train_dataset, eval_dataset
        self.views, self.recipe_name, self.data_args, self.model_args = views, recipe_name, data_args, model_args
        self.evaluation = evaluation if args.evaluation is None else read_yaml(args.evaluation)
        self.output_dir = Path(args.output_dir)
        self.input_names = input_names(model, views)
        self.accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            log_with=build_trackers(args.report_to),
            project_dir=str(self.output_dir),
            # Queues, prototypes and tables are equal on all processes by construction.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )
        _check_processes(self.accelerator)
        check_trackers(self.accelerator, args.report_to)
        self.is_main = self.accelerator.is_main_process
        check_output_dir(self.output_dir, args.resume_from_checkpoint)
        self.accelerator.wait_for_everyone()  # nobody writes before everybody has looked

        config = model.config
        self.image_processor = build_image_processor(
            config.image_size, config.image_mean, config.image_std, args.eval_crop_ratio
        )
        built_views = build_views(views, config.image_size)
        note_masks(model, built_views)
        self.normalize = Normalize(config.image_mean, config.image_std, built_views).to(self.accelerator.device)
        self.loader = build_train_loader(
            train_dataset,
            built_views,
            batch_size=args.per_device_train_batch_size,
            seed=args.seed,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
            num_workers=args.dataloader_num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            **self._place_views(built_views),
        )
        self._plan_steps()
        self.run_evaluation = RunEvaluation(
            self.evaluation, train_dataset, eval_dataset, built_views, self.image_processor, self.accelerator, args
        )

        self._prepare_model(model)
        self.optimizer = build_optimizer(model, args, self.global_batch_size)
        self.schedule = Schedule(self.optimizer, args, self.total_steps, self.steps_per_epoch)
        self.prepared_model, self.prepared_optimizer = self.accelerator.prepare(model, self.optimizer)
        self.identity = self._identity()  # before a save, which completes the model's configuration
        self.checkpoints = CheckpointWriter(self.output_dir)
        self.log = RunLog(self.output_dir, self.accelerator, self.checkpoints)
        self.report = RunReport(
            self.log,
            self.run_evaluation,
            model,
            self.image_processor,
            self.loader.dataset,
            args.dataloader_num_workers,
            self.total_steps,
            self._summary(),
        )
        self.signals = StopSignals(self.accelerator)

        # What a checkpoint holds besides model, optimizer and log.
        self.step, self.epoch, self.step_in_epoch = 0, 0, 0
        self.sampling_weights: torch.Tensor | None = None
        self.last_evaluation: dict = {}
        self.best = BestCheckpoint(args.keep_best, self.accelerator.device)
        self.saved_step: int | None = None

    def _place_views(self, views: list[View]) -> dict:
        """What the loader has to know of where images are kept and views are rendered."""
        args, device = self.args, self.accelerator.device
        images, kept = None, args.cache_images
        if kept != "no":
            place = device if kept == "device" else torch.device("cpu")
            images = cache_images(self.train_dataset, views, place, num_workers=args.dataloader_num_workers)
        self.render_batch = None
        if args.augment_on_device or kept == "device":
            self.render_batch = BatchRenderer(views, device, images or ())
        if kept == "device":  # workers draw, for which they need sizes
            images = [image if isinstance(image, str) else image.to("meta") for image in images]
        return {"images": images, "rendered": self.render_batch is None}

    def _prepare_model(self, model: SSLModel) -> None:
        """Everything that the optimizer, which takes the parameters as they are, has to come after."""
        args = self.args
        if self.accelerator.num_processes > 1 and model.sync_batchnorm:
            synchronize_batchnorm(model, self.accelerator.device)
        if args.loss_chunk_size is not None:
            if not getattr(model, "supports_loss_chunks", False):
                raise ValueError(
                    f"--loss_chunk_size is for algorithms that compare the images of a batch; {type(model).__name__} "
                    "does not, so --gradient_accumulation_steps does the same for it"
                )
            model.loss_chunk_size = args.loss_chunk_size
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if args.torch_compile:
            model.loss = torch.compile(model.loss)  # features, of batches of other sizes, are quicker to have without
        device = self.accelerator.device
        model.to(device)
        use_channels_last(model, device)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, in which cuDNN convolves anyway
        model.begin_run(None if self.is_streamed else len(self.train_dataset))
        self.model = model

    @property
    def is_streamed(self) -> bool:
        return isinstance(self.train_dataset, datasets.IterableDataset)

    @property
    def repo_id(self) -> str:
        return self.args.hub_model_id or self.output_dir.resolve().name

    @property
    def progress(self) -> Progress:
        return Progress(self.step, self.total_steps, self.steps_per_epoch)

    def train(self) -> dict:
        """Trains to the end, shares the model, and returns the last evaluation.

        SIGTERM, SIGINT and SIGHUP let the step end, save a checkpoint and raise `SystemExit` with 128 + the signal.

        Raises:
            NonFiniteLossError: a loss, the weights or what else a checkpoint holds became NaN or infinite.
            OSError: a file could not be written or read, or another run writes to the same folder.
        """
        with lock_output_dir(self.output_dir) if self.is_main else nullcontext():
            if self.is_main:
                check_output_dir(self.output_dir, self.args.resume_from_checkpoint)  # now that nobody else writes
            try:
                with self.report.noting_failure(), explain_worker_errors():
                    self._start()
                    with self.signals:
                        self._train_epochs()
                    return self._finish()
            except (OSError, SafetensorError) as error:
                reason = str(error).rstrip(".")
                raise OSError(f"the run ended after step {self.step}: {reason}. {self.log.how_to_resume()}") from error
            finally:
                self.checkpoints.close()
                close_loader(self.loader)

    def _train_epochs(self) -> None:
        self.prepared_model.train()
        accumulation = self.args.gradient_accumulation_steps
        while self.step < self.total_steps:
            if self.step_in_epoch == 0:
                with self.log.timed("preparation"):
                    self.begin_epoch()
            self.loader.batch_sampler.set_epoch(self.epoch, self.step_in_epoch * accumulation, self.sampling_weights)
            with self.log.timed("data_wait"):
                batches = iter(self.loader)
            started_at = self.step
            while self.step < self.total_steps:
                with self.log.timed("data_wait"):
                    micro_batches = list(islice(batches, accumulation))
                if len(micro_batches) < accumulation:
                    break
                self.train_step(micro_batches)
                self._after_step()
            else:
                break
            if self.step == started_at and self.step_in_epoch == 0:
                raise ValueError(
                    "an epoch of the stream holds less than one optimizer step: make the batch or "
                    "gradient_accumulation_steps smaller"
                )
            self.epoch, self.step_in_epoch = self.epoch + 1, 0
            if self.args.checkpointing_steps == "epoch" and self.step > started_at and self.step != self.saved_step:
                with self.log.timed("saving"):
                    self._save_checkpoint()

    # One epoch, one step

    def begin_epoch(self) -> None:
        """Lets the model prepare an epoch, by clustering for one."""
        # The same seed on every process: whatever is drawn here, clusters for one, has to be.
        self._seed(EPOCH_STREAM, self.epoch, process_index=0)
        self.sampling_weights = self.model.begin_epoch(self.progress, self._feature_table)
        for parameter in self.model.redrawn_parameters:
            self.optimizer.state.pop(parameter, None)
        metrics, clusters = dict(self.model.epoch_metrics), self.model.cluster_labels
        if clusters is not None and "label" in self.train_dataset.column_names:
            classes = torch.tensor(self.train_dataset["label"])
            metrics["nmi_to_classes"] = normalized_mutual_information(clusters, classes)
        if metrics:
            self.log.write(self.step, metrics)

    def _feature_table(self, extract: Callable[[torch.Tensor], torch.Tensor] | None = None) -> FeatureTable:
        return self.run_evaluation.feature_table(self.model, self.train_dataset, extract)

    def train_step(self, micro_batches: list[dict]) -> None:
        """Takes an optimizer step.

        Args:
            micro_batches: of the loader, as many as gradients are accumulated of.
        """
        self.schedule.apply(self.progress)
        self.model.begin_step(self.progress)
        self._seed(STEP_STREAM, self.step, self.accelerator.process_index)
        for number, batch in enumerate(micro_batches):
            self.log.note_unreadable(batch.pop("unreadable"))
            self.log.add_images(len(batch["indices"]) * self.accelerator.num_processes)
            if number == len(micro_batches) - 1:
                self._backward(batch, share=1 / len(micro_batches))
            else:
                with self.accelerator.no_sync(self.prepared_model):
                    self._backward(batch, share=1 / len(micro_batches))
        if self.args.max_grad_norm:  # as in transformers, 0 is no clipping
            norm = self.accelerator.clip_grad_norm_(self.prepared_model.parameters(), self.args.max_grad_norm)
            self.log.add("grad_norm", norm.detach().double())
        drop_frozen_gradients(self.optimizer, self.progress)
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad()
        if self.run_evaluation.probe is not None:
            self.run_evaluation.probe.step()
        if not self.model.sync_batchnorm:
            average_batchnorm_statistics(self.model)
        self.step += 1
        self.step_in_epoch += 1
        self.model.end_step(self.progress)

    def _backward(self, batch: dict, share: float) -> None:
        if self.render_batch is not None:
            batch = self.render_batch(batch)
        batch = self.normalize(_to_device(batch, self.accelerator.device))
        inputs = {name: batch[name] for name in self.input_names}
        outputs = self.prepared_model(mode="loss", **inputs)
        self.accelerator.backward(outputs.loss * share)
        terms = {"loss": outputs.loss.detach().double()}
        if len(outputs.losses) > 1:
            terms |= {f"loss_{name}": term.detach().double() for name, term in outputs.losses.items()}
        self.log.add_terms(self.step + 1, terms, share)
        if self.run_evaluation.probe is not None:
            self.run_evaluation.probe.observe(self.model, batch["pixel_values"], batch["indices"], share)

    def _after_step(self) -> None:
        self.log.update_bar(self.step)
        if self.is_main:
            self.checkpoints.reserve(self.model, self.optimizer)
        self.checkpoints.raise_error()
        done = self.step == self.total_steps
        every = self.args.checkpointing_steps
        if self.step % self.args.logging_steps == 0 or done:
            epoch = float(self.epoch) if self.steps_per_epoch is None else self.progress.epoch
            self.log.write_interval(self.step, self.optimizer.param_groups[0]["lr"], epoch)
            self.report.logged()
        is_best = False
        if done or (self.args.eval_steps is not None and self.step % self.args.eval_steps == 0):
            self._evaluate()
            is_best = self.best.note(self.step, self.last_evaluation)
        if is_best:
            self.log.say(f"{self.best} so far")
        stop = self.signals.agreed()
        if done or stop or is_best or (every != "epoch" and self.step % int(every) == 0):
            with self.log.timed("saving"):
                self._save_checkpoint()
        if stop and not done:
            self._stop(stop)

    def _stop(self, signal_number: int) -> NoReturn:
        self.log.bar.close()
        self.checkpoints.wait()
        self.accelerator.wait_for_everyone()  # a launcher ends the others when one process has ended
        name = signal.Signals(signal_number).name
        self.log.say(
            f"stopped by {name} after step {self.step} of {self.total_steps}: to resume "
            f"from {self.output_dir / f'checkpoint-{self.step}'}, add --resume_from_checkpoint latest"
        )
        self.report.end(f"stopped by {name}")
        self.accelerator.end_training()
        raise SystemExit(128 + signal_number)

    def _evaluate(self) -> None:
        if not self.run_evaluation.evaluators:
            return
        self.log.check_finite()
        start = time.perf_counter()
        with self.log.timed("evaluation"):
            metrics = self.run_evaluation(self.model)
        seconds = time.perf_counter() - start
        self.last_evaluation = {"step": self.step, **metrics}
        if metrics:  # the online probe alone gives none before the first step
            self.log.write(self.step, metrics)
            self.log.say(f"step {self.step}: {describe_metrics(metrics)} ({seconds:.1f} s)")
        self.report.evaluated()

    # Beginning, checkpoints, end

    def _start(self) -> None:
        """Resumes, or begins a new run."""
        if self.is_main and self.args.push_to_hub:
            check_can_push(self.repo_id, private=self.args.hub_private_repo)
        checkpoint = find_checkpoint(self.output_dir, self.args.resume_from_checkpoint)
        if checkpoint is not None:
            self._resume(checkpoint)
        if self.is_main:
            if aside := clear_the_way(self.output_dir, self.step):
                names = ", ".join(path.name for path in sorted(aside.glob("checkpoint-*")))
                logger.warning("the run continues from step %d, so %s moved to %s", self.step, names, aside)
            arguments = [each for each in (self.model_args, self.data_args, self.args) if each is not None]
            save_recipe(self.output_dir / "recipe.yaml", self.model.config, self.views, self.evaluation, arguments)
        self.accelerator.wait_for_everyone()
        settings = {key: value for key, value in vars(self.args).items() if isinstance(value, int | float | str)}
        self.log.start(self.step, self.total_steps, settings)
        for line in [*describe_groups(self.optimizer), *self.run_evaluation.notes]:
            self.log.say(line)
        self.report.begin()
        if self.step == 0:
            self._evaluate()
            with self.log.timed("evaluation"):
                baselines = self.run_evaluation.accuracy_baselines()
            if baselines:
                self.log.write(self.step, baselines)

    def _resume(self, checkpoint: Path) -> None:
        state = read_state(checkpoint)
        self._check_resumable(checkpoint, state)
        tensors = load_checkpoint(checkpoint, self.model, self.optimizer, state)
        self.sampling_weights = tensors.get("sampling_weights", {}).get("sampling_weights")
        if self.run_evaluation.probe is not None and "online_probe" in tensors:
            self.run_evaluation.probe.load_state(tensors["online_probe"])
        self.step, self.epoch, self.step_in_epoch = state["step"], state["epoch"], state["step_in_epoch"]
        self.last_evaluation = state["last_evaluation"]
        self.best.resume(state["best"], self.output_dir)
        self.log.load_state(state["log"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        before = state["identity"]
        changed = [
            f"{name} {before.get(name)} -> {value}"
            for name, value in self.identity.items()
            if before.get(name) != value
        ]
        if changed and self.is_main:
            logger.warning(
                "from here on the run differs from the one that wrote %s: %s", checkpoint, "; ".join(changed)
            )
        self.log.say(f"resuming from {checkpoint}: step {self.step} of {self.total_steps}")

    def _check_resumable(self, checkpoint: Path, state: dict) -> None:
        """Refuses what a run cannot change on its way; it takes all other settings from its own arguments."""
        before, now = state["identity"], self.identity
        reasons = {
            "optim": "what the optimizer remembers is of no use to another one",
            "global_batch_size": "its epochs and steps are counted in batches",
            "images": "its epochs are counted in images",
        }
        for name, reason in reasons.items():
            if before.get(name) != now[name]:
                raise ValueError(
                    f"{checkpoint} was written with {name} {before.get(name)} and this run has {now[name]}: {reason}; "
                    "resume with what it was written with, or begin another run from its weights with "
                    f"--model_name_or_path {checkpoint}"
                )
        if state["step"] > self.total_steps:
            raise ValueError(
                f"{checkpoint} is of step {state['step']} and the run ends at {self.total_steps}: give more "
                "--max_train_steps or --num_train_epochs, or an earlier checkpoint"
            )

    def _save_checkpoint(self) -> None:
        self.log.check_finite()
        # A gradient can overflow where the loss did not, a running statistic or the optimizer's state alone too.
        values = self.model.state_dict() | optimizer_state(self.model, self.optimizer)
        tensors = (
            {} if self.sampling_weights is None else {"sampling_weights": {"sampling_weights": self.sampling_weights}}
        )
        if self.run_evaluation.probe is not None:
            tensors["online_probe"] = self.run_evaluation.probe.state()
            values |= {f"online_probe.{name}": value for name, value in tensors["online_probe"].items()}
        bad = find_non_finite(tensors_of(values))
        if bad:
            names = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
            self.log.raise_non_finite(f"weights or optimizer are not finite after step {self.step}: {names}", self.step)
        log = self.log.state()
        if self.is_main:
            state = {
                "step": self.step,
                "epoch": self.epoch,
                "step_in_epoch": self.step_in_epoch,
                "last_evaluation": self.last_evaluation,
                "best": self.best.found,
                "log": log,
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
                "identity": self.identity,
            }
            self.checkpoints.save(
                self.step,
                self.model,
                self.image_processor,
                self.optimizer,
                state,
                tensors,
                self.args.save_total_limit,
                best_step=self.best.step,
            )
        self.saved_step = self.step

    def _finish(self) -> dict:
        self.log.bar.close()
        self.checkpoints.wait()
        # What the caller goes on with: safetensors, for one, takes no other format.
        nn.Module.to(self.model, memory_format=torch.contiguous_format)
        if self.args.torch_compile:
            del self.model.loss  # a copy of the model would call that of this one
        if self.is_main:
            write_results(
                self.model,
                self.image_processor,
                self.output_dir,
                records=self.log.records(),
                report=self.report,
                recipe_name=self.recipe_name,
                config_overrides=self.model_args and self.model_args.config_overrides,
                initial_weights=self.model_args and self.model_args.model_name_or_path,
                dataset_name=self.data_args.dataset_name if self.data_args is not None else None,
                training_arguments=self._training_arguments(),
                best=self.best.found,
                repo_id=self.args.hub_model_id,
            )
            if self.log.unreadable:
                logger.warning("images that could not be read and were skipped: %d", len(self.log.unreadable))
            self.log.say(f"time: {describe_time(self.log.run_time, self.log.run_images, self.accelerator.device)}")
            self.log.say(f"the model is in {self.output_dir}")
            if self.best.found is not None:
                self.log.say(str(self.best))
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        # Last, as it may fail, and may take longer than processes wait for each other.
        if self.is_main and self.args.push_to_hub:
            self.log.say(f"shared at {publish(self.output_dir, self.repo_id, private=self.args.hub_private_repo)}")
        return self.last_evaluation

    # Plans

    def _plan_steps(self) -> None:
        args = self.args
        self.global_batch_size = (
            args.per_device_train_batch_size * self.accelerator.num_processes * args.gradient_accumulation_steps
        )
        self.steps_per_epoch = None
        if not self.is_streamed:
            self.steps_per_epoch = len(self.loader.batch_sampler) // args.gradient_accumulation_steps
            if self.steps_per_epoch == 0:
                raise ValueError(
                    f"an optimizer step takes {self.global_batch_size} images, and the dataset has "
                    f"{len(self.train_dataset)}: make per_device_train_batch_size or gradient_accumulation_steps smaller"
                )
        self.total_steps = self._count_steps(args.max_train_steps, args.num_train_epochs)
        if self.total_steps is None:
            raise ValueError("a streamed dataset has no known length: give --max_train_steps")
        self._fit_warmup()

    def _count_steps(self, max_train_steps: int | None, num_train_epochs: float) -> int | None:
        if max_train_steps is not None or self.steps_per_epoch is None:
            return max_train_steps
        return math.ceil(num_train_epochs * self.steps_per_epoch)

    def _fit_warmup(self) -> None:
        """Shortens a recipe's warm-up with the run, where it would be longer; one that was asked for is refused."""
        warmup = count_warmup_steps(self.args, self.steps_per_epoch)
        if warmup <= self.total_steps:
            return
        planned = self.args.recipe_length and self._count_steps(*self.args.recipe_length)
        if not planned or warmup > planned:
            raise ValueError(
                f"the warm-up of {warmup} steps is longer than the run of {self.total_steps}, whose learning rate would "
                "never be reached: give a smaller --warmup_steps or --warmup_epochs, or a longer run"
            )
        fitted = round(self.total_steps * warmup / planned)
        self.args = replace(self.args, warmup_steps=fitted)
        if self.is_main:
            logger.warning(
                "the recipe's warm-up of %d steps is longer than this run of %d, so it is shortened with it: from %d of "
                "%d steps to %d; --warmup_steps sets another",
                *(warmup, self.total_steps, warmup, planned, fitted),
            )

    def _identity(self) -> dict:
        """What a resumed run has to have in common with the first one to end like it, as JSON."""
        return {
            **self._training_arguments(),
            "images": None if self.is_streamed else len(self.train_dataset),
            "views": self.views,
            **json.loads(self.model.config.to_json_string(use_diff=False)),
        }

    def _training_arguments(self) -> dict:
        return self.args.identity() | {
            "mixed_precision": self.accelerator.mixed_precision,
            "global_batch_size": self.global_batch_size,
            "num_processes": self.accelerator.num_processes,
            "total_steps": self.total_steps,
        }

    def _summary(self) -> dict[str, object]:
        """What the run is made of, in short."""
        processes = self.accelerator.num_processes
        return {
            "recipe": self.recipe_name or "none",
            "algorithm": self.model.config.model_type,
            "images": "streamed" if self.is_streamed else len(self.train_dataset),
            "images a step": self.global_batch_size,
            "optimizer": self.args.optim,
            "precision": self.accelerator.mixed_precision,
            "device": f"{processes} x {self.accelerator.device.type}"
            if processes > 1
            else self.accelerator.device.type,
        }

    def _seed(self, stream: int, number: int, process_index: int) -> None:
        seed_generators(self.accelerator.device, self.args.seed, stream, number, process_index)


def seed_generators(device: torch.device, seed: int, stream: int, number: int, process_index: int) -> None:
    """Seeds torch for the step or the epoch of this number, as a stream of random numbers of its own.

    That is the generators of the CPU and of the device; `torch.manual_seed` looks for devices of every kind, every time.
    """
    value = int(np.random.SeedSequence([seed, stream, number, process_index]).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)


def use_channels_last(model: nn.Module, device: torch.device) -> None:
    """Lays the weights of a convolutional model out as its device computes fastest; its images follow by themselves.

    On a CPU not those with a narrow 1x1 convolution of stride 2: its gradient ends the process (oneDNN, torch 2.14).
    """
    layers = [layer for layer in model.backbone.modules() if isinstance(layer, nn.Conv2d)]
    crashes = any(each.in_channels < 16 and each.kernel_size == (1, 1) and each.stride != (1, 1) for each in layers)
    if is_convolutional(model.backbone) and (device.type == "cuda" or (device.type == "cpu" and not crashes)):
        model.to(memory_format=torch.channels_last)


def _check_processes(accelerator: Accelerator) -> None:
    """Refuses what Accelerate would do in another way than it was told."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"the launcher started {launched} processes (WORLD_SIZE), and Accelerate sees {accelerator.num_processes}, so "
            "that each would train alone: to train on CPUs set the environment variable ACCELERATE_USE_CPU=true, "
            "otherwise unset WORLD_SIZE"
        )
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "fp16":
        raise ValueError("fp16 needs a GPU and this run is on the CPU: give --mixed_precision bf16 or no")


def input_names(model: SSLModel, views: list[dict]) -> list[str]:
    """The names of what `mode="loss"` gets of a batch: what the signature of the model's `loss` asks for.

    Raises:
        ValueError: it needs what no view makes, or a view makes what it does not take.
    """
    parameters = inspect.signature(model.loss).parameters
    made = {name for name, key in INPUT_KEYS.items() if any(key in view for view in views)}
    for name, parameter in parameters.items():
        if name in INPUT_KEYS and name not in made and parameter.default is parameter.empty:
            raise ValueError(
                f"{type(model).__name__} needs {name}, which no view makes: add the key {INPUT_KEYS[name]!r} to a view "
                "of the recipe"
            )
    for name in made - parameters.keys():
        raise ValueError(
            f"{type(model).__name__} does not take {name}: leave the key {INPUT_KEYS[name]!r} out of the recipe's views"
        )
    return ["pixel_values", *(name for name in parameters if name in {"indices", *made})]


def note_masks(model: SSLModel, views: list[View]) -> None:
    """Tells a masked-image model how many patches the masks of its views remove, so that no step has to look."""
    for view in views:
        if isinstance(model, MaskedPatchModel) and getattr(view, "mask", None) is not None:
            model.num_masked_patches = view.mask.count


def _to_device(batch: dict, device: torch.device) -> dict:
    def move(value):
        return [move(each) for each in value] if isinstance(value, list) else value.to(device, non_blocking=True)

    return {name: move(value) for name, value in batch.items()}
