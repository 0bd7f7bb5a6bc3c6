"""The pretraining loop: prepare, train, log, evaluate, checkpoint, resume, share."""

import json
import logging
import math
import sys
import time
from itertools import islice
from pathlib import Path
from typing import NoReturn

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from tqdm.auto import tqdm

from ..data.loading import build_eval_loader, build_train_loader
from ..data.processing import Normalize, build_image_processor
from ..data.views import build_views
from ..distributed import synchronize_batchnorm
from ..evaluation.features import extract_features
from ..evaluation.knn import knn_accuracy
from ..evaluation.label_free import describe_collapse, embedding_std, rankme
from ..hub.model_card import build_model_card
from ..hub.publishing import publish, save_for_sharing
from ..modeling_outputs import ReconstructionOutput
from ..modeling_utils import SSLModel
from ..visualization.curves import plot_training_curves
from ..visualization.reconstruction import plot_reconstruction
from .arguments import PretrainingArguments
from .checkpointing import (
    check_output_dir,
    cut_metrics,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from .optimization import build_optimizer, build_scheduler

logger = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite."""


class SSLTrainer:
    """Trains any `SSLModel` with Accelerate.

    A run is a function of its arguments: order and views come from (seed, epoch, index), and before every step the
    random generators are seeded from (seed, step, process). So a run that was killed and resumed ends like one that was
    not, bit for bit on a CPU.

    Args:
        model: the algorithm, on the CPU.
        args: see `PretrainingArguments`.
        train_dataset: what `load_image_dataset` returns.
        views: a recipe's views, see `build_views`.
        eval_dataset: a labelled split. With it and with labels in `train_dataset`, the kNN accuracy is logged.
        recipe_name, dataset_name: for the model card.
    """

    def __init__(
        self,
        model: SSLModel,
        args: PretrainingArguments,
        train_dataset: datasets.Dataset | datasets.IterableDataset,
        views: list[dict],
        eval_dataset: datasets.Dataset | None = None,
        recipe_name: str | None = None,
        dataset_name: str | None = None,
    ):
        self.args, self.train_dataset, self.eval_dataset = args, train_dataset, eval_dataset
        self.views, self.recipe_name, self.dataset_name = views, recipe_name, dataset_name
        self.output_dir = Path(args.output_dir)
        self._check_evaluation()
        trackers = [] if args.report_to == "none" else args.report_to.split(",")
        self.accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            log_with=trackers or None,
            project_dir=str(self.output_dir),
            # Queues, prototypes and tables are equal on all processes by construction.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )
        # Accelerate leaves a tracker out without a word when its package is missing.
        missing = set(trackers) - {"all"} - {str(tracker) for tracker in self.accelerator.log_with}
        if missing:
            names = " ".join(sorted(missing))
            raise ValueError(
                f"--report_to {args.report_to}: install what is missing (pip install {names}) or leave it out"
            )
        self.is_main = self.accelerator.is_main_process
        check_output_dir(self.output_dir, args.resume_from_checkpoint)
        self.accelerator.wait_for_everyone()  # nobody writes before everybody has looked

        self.image_processor = build_image_processor(
            model.config.image_size, model.config.image_mean, model.config.image_std, args.eval_crop_ratio
        )
        self.normalize = Normalize(model.config.image_mean, model.config.image_std).to(self.accelerator.device)
        self.loader = build_train_loader(
            train_dataset,
            build_views(views),
            batch_size=args.per_device_train_batch_size,
            seed=args.seed,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
            num_workers=args.dataloader_num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        self._plan_steps()

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
            model.compile()
        # Moved before the optimizer is made, which takes the parameters as they are.
        model.to(self.accelerator.device)
        self.model = model
        self.optimizer = build_optimizer(model, args, self.global_batch_size)
        self.scheduler = build_scheduler(self.optimizer, args, self.total_steps, self.steps_per_epoch)
        self.prepared_model, self.prepared_optimizer = self.accelerator.prepare(model, self.optimizer)

        self.identity = self._identity()  # before a save, which completes the model's configuration

        # What a checkpoint holds besides model, optimizer and schedule.
        self.step, self.epoch, self.step_in_epoch = 0, 0, 0
        self.interval: dict[str, torch.Tensor] = {}  # sums of the loss terms since the last log
        self.last_logged_step = 0
        self.last_evaluation: dict = {}
        self.unreadable: set[str] = set()

        # The first step whose loss was not finite, or infinity, and the loss terms there.
        self.first_bad = torch.tensor([math.inf], dtype=torch.double, device=self.accelerator.device)
        self.term_names: list[str] = []
        self.metrics_path = self.output_dir / "metrics.jsonl"
        self.interval_start, self.interval_images = time.perf_counter(), 0

    def train(self) -> dict:
        """Trains to the end, shares the model, and returns the last evaluation."""
        self._start()
        self.prepared_model.train()
        progress = tqdm(
            total=self.total_steps,
            initial=self.step,
            desc="pretraining",
            disable=not self.is_main,
            mininterval=0.1 if sys.stderr.isatty() else 30,  # seconds; in a log file every update is a line
        )
        self.interval_start, self.interval_images = time.perf_counter(), 0
        while self.step < self.total_steps:
            if self.step_in_epoch == 0:
                self._seed(self.epoch, stream=1)
                self.model.begin_epoch(self.epoch, lambda: self._features(self.train_dataset)[0])
            self.loader.batch_sampler.set_epoch(self.epoch, self.step_in_epoch * self.args.gradient_accumulation_steps)
            batches = iter(self.loader)
            started_at = self.step
            while self.step < self.total_steps:
                micro_batches = list(islice(batches, self.args.gradient_accumulation_steps))
                if len(micro_batches) < self.args.gradient_accumulation_steps:
                    break
                self._train_step(micro_batches)
                progress.update()
                self._after_step(progress)
            else:
                break
            if self.step == started_at and self.step_in_epoch == 0:
                raise ValueError(
                    "an epoch of the stream holds less than one optimizer step: make the batch or "
                    "gradient_accumulation_steps smaller"
                )
            self.epoch, self.step_in_epoch = self.epoch + 1, 0
            if self.args.checkpointing_steps == "epoch" and self.step > started_at:
                self._save_checkpoint()
        progress.close()
        return self._finish()

    # One step

    def _train_step(self, micro_batches: list[dict]) -> None:
        self._seed(self.step, stream=0)
        last = len(micro_batches) - 1
        for number, batch in enumerate(micro_batches):
            self._note_unreadable(batch["unreadable"])
            pixel_values = self.normalize(
                [view.to(self.accelerator.device, non_blocking=True) for view in batch["pixel_values"]]
            )
            if number == last:
                loss = self._backward(pixel_values, len(micro_batches))
            else:
                with self.accelerator.no_sync(self.prepared_model):
                    loss = self._backward(pixel_values, len(micro_batches))
            for name, value in loss.items():
                self.interval[name] = self.interval.get(name, 0.0) + value
            self.interval_images += len(batch["indices"]) * self.accelerator.num_processes
        if self.args.max_grad_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.prepared_model.parameters(), self.args.max_grad_norm)
            self.interval["grad_norm"] = self.interval.get("grad_norm", 0.0) + norm.detach().double()
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad()
        self.scheduler.step()
        self.step += 1
        self.step_in_epoch += 1
        self.model.end_step(self.step / self.total_steps)

    def _backward(self, pixel_values: list[torch.Tensor], num_micro_batches: int) -> dict[str, torch.Tensor]:
        inputs = pixel_values[0] if len(pixel_values) == 1 else pixel_values
        outputs = self.prepared_model(inputs, mode="loss")
        self.accelerator.backward(outputs.loss / num_micro_batches)
        terms = {"loss": outputs.loss.detach().double()}
        if len(outputs.losses) > 1:
            terms |= {f"loss_{name}": term.detach().double() for name, term in outputs.losses.items()}
        # Looked at when the interval is logged: asking at every step would make the device wait for the host.
        fine = torch.isfinite(terms["loss"]) | torch.isfinite(self.first_bad[0])
        here = torch.stack([torch.full_like(terms["loss"], self.step + 1), *terms.values()])
        self.first_bad, self.term_names = torch.where(fine, self.first_bad, here), list(terms)
        return {name: term / num_micro_batches for name, term in terms.items()}

    def _after_step(self, progress: tqdm) -> None:
        done = self.step == self.total_steps
        every = self.args.checkpointing_steps
        save = done or (every != "epoch" and self.step % int(every) == 0)
        if self.step % self.args.logging_steps == 0 or done:
            self._log_interval(progress)
        if done or (self.args.eval_steps is not None and self.step % self.args.eval_steps == 0):
            self._evaluate()
        if save:
            self._save_checkpoint()

    # Logging and evaluation

    def _log_interval(self, progress: tqdm) -> None:
        self._check_finite()
        steps = self.step - self.last_logged_step
        values = self.accelerator.reduce(torch.stack(list(self.interval.values())), reduction="mean")
        metrics = {name: value / steps for name, value in zip(self.interval, values.tolist(), strict=True)}
        metrics["learning_rate"] = self.scheduler.get_last_lr()[0]
        metrics["epoch"] = self._fractional_epoch()
        metrics["images_per_second"] = self.interval_images / (time.perf_counter() - self.interval_start)
        self._log(metrics)
        progress.set_postfix(
            loss=f"{metrics['loss']:.4f}",
            lr=f"{metrics['learning_rate']:.1e}",
            images_per_s=f"{metrics['images_per_second']:.0f}",
        )
        self.interval, self.last_logged_step = {}, self.step
        self.interval_start, self.interval_images = time.perf_counter(), 0

    def _check_finite(self) -> None:
        # A process may see its first bad loss a step after another one, from the weights that this one made bad.
        found = self.accelerator.gather(self.first_bad[None])
        bad_step, *values = found[found[:, 0].argmin()].tolist()
        if math.isfinite(bad_step):
            terms = ", ".join(f"{name} {value:.6g}" for name, value in zip(self.term_names, values, strict=True))
            self._raise_non_finite(f"the loss was not finite at step {int(bad_step)}: {terms}")

    def _raise_non_finite(self, what: str) -> NoReturn:
        good = list_checkpoints(self.output_dir)
        raise NonFiniteLossError(
            f"{what}. "
            + (f"The last good checkpoint is {good[-1]}. " if good else "There is no checkpoint yet. ")
            + "Usual causes: too high a learning rate or too short a warm-up, fp16 where bf16 or no mixed precision is "
            "needed, no max_grad_norm."
        )

    def _evaluate(self) -> None:
        if self.eval_dataset is None:
            return
        self._check_finite()
        start = time.perf_counter()
        features, labels = self._features(self.eval_dataset)
        metrics = {"embedding_std": embedding_std(features), "rankme": rankme(features)}
        if "label" in self.train_dataset.column_names:
            bank, bank_labels = self._features(self.train_dataset)
            metrics["knn_accuracy"] = knn_accuracy(bank, bank_labels, features, labels, k=min(20, len(bank)))
        self.last_evaluation = {"step": self.step, **metrics}
        self._log(metrics)
        if self.is_main:
            values = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            tqdm.write(f"step {self.step}: {values} ({time.perf_counter() - start:.1f} s)")
            warning = describe_collapse(metrics["embedding_std"], metrics["rankme"])
            if warning is not None and self.step > 0:
                logger.warning(warning)
        self.interval_start += time.perf_counter() - start  # images/s is that of training

    def _features(self, dataset: datasets.Dataset) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features and labels of a whole dataset, in its order, on every process."""
        processes, index = self.accelerator.num_processes, self.accelerator.process_index
        loader = build_eval_loader(
            dataset.shard(processes, index, contiguous=True) if processes > 1 else dataset,
            self.image_processor,
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
        )
        features, labels = extract_features(self.model, loader, self.accelerator.device)
        if processes == 1:
            return features, labels
        parts = gather_object([(features, labels)])
        return torch.cat([part[0] for part in parts]), None if labels is None else torch.cat([p[1] for p in parts])

    def _log(self, metrics: dict) -> None:
        self.accelerator.log(metrics, step=self.step)
        if self.is_main:
            with self.metrics_path.open("a") as file:
                file.write(json.dumps({"step": self.step, **metrics}) + "\n")

    def _note_unreadable(self, names: list[str]) -> None:
        for name in names:
            if name not in self.unreadable:
                self.unreadable.add(name)
                logger.warning("skipped an image that cannot be read (%d so far): %s", len(self.unreadable), name)

    # Beginning and end

    def _start(self) -> None:
        """Resumes, or begins a new run."""
        checkpoint = find_checkpoint(self.output_dir, self.args.resume_from_checkpoint)
        if checkpoint is not None:
            self._resume(checkpoint)
        if self.is_main:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            if later := remove_leftovers(self.output_dir, self.step):
                logger.warning("going on from step %d, so removed %s", self.step, ", ".join(p.name for p in later))
            cut_metrics(self.metrics_path, self.step)
        self.accelerator.wait_for_everyone()
        plain = {key: value for key, value in vars(self.args).items() if isinstance(value, int | float | str)}
        self.accelerator.init_trackers("ssl_hub", config=plain)
        if self.step == 0:
            self._evaluate()

    def _resume(self, checkpoint: Path) -> None:
        state = load_checkpoint(checkpoint, self.model, self.optimizer)
        self.step, self.epoch, self.step_in_epoch = state["step"], state["epoch"], state["step_in_epoch"]
        self.last_logged_step, self.last_evaluation = state["last_logged_step"], state["last_evaluation"]
        device = self.accelerator.device
        self.interval = {
            name: torch.tensor(value, dtype=torch.double, device=device) for name, value in state["interval"].items()
        }
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.unreadable = set(state["unreadable"])
        before = state["identity"]
        changed = [
            f"{name} {before.get(name)} -> {value}"
            for name, value in self.identity.items()
            if before.get(name) != value
        ]
        if changed:
            logger.warning("the resumed run differs from the one that wrote %s: %s", checkpoint, "; ".join(changed))
        if self.is_main:
            tqdm.write(f"resuming from {checkpoint}: step {self.step} of {self.total_steps}")

    def _save_checkpoint(self) -> None:
        self._check_finite()
        # A gradient can overflow where the loss did not: the weights are bad before the next loss tells.
        if not torch.stack([parameter.isfinite().all() for parameter in self.model.parameters()]).all():
            self._raise_non_finite(f"the weights are not finite after step {self.step}")
        interval = {}
        if self.interval:
            sums = self.accelerator.reduce(torch.stack(list(self.interval.values())), reduction="mean")
            interval = dict(zip(self.interval, sums.tolist(), strict=True))
        self.unreadable = set(gather_object(sorted(self.unreadable)))
        if self.is_main:
            state = {
                "step": self.step,
                "epoch": self.epoch,
                "step_in_epoch": self.step_in_epoch,
                "last_logged_step": self.last_logged_step,
                "last_evaluation": self.last_evaluation,
                "interval": interval,
                "scheduler": self.scheduler.state_dict(),
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
                "unreadable": sorted(self.unreadable),
                "identity": self.identity,
            }
            save_checkpoint(
                self.output_dir,
                self.step,
                self.model,
                self.image_processor,
                self.optimizer,
                state,
                self.args.save_total_limit,
            )
        self.accelerator.wait_for_everyone()

    def _finish(self) -> dict:
        if self.is_main:
            save_for_sharing(self.model, self.image_processor, self.output_dir)
            has_reconstruction = self._plot_reconstruction()
            plot_training_curves(self.metrics_path, self.output_dir / "curves.png")
            card = build_model_card(
                self.model.config,
                recipe_name=self.recipe_name,
                dataset_name=self.dataset_name,
                training_arguments=self._training_arguments(),
                metrics=[json.loads(line) for line in self.metrics_path.read_text().splitlines()],
                repo_id=self.args.hub_model_id,
                has_reconstruction=has_reconstruction,
            )
            card.save(self.output_dir / "README.md")
            if self.unreadable:
                logger.warning("images that could not be read and were skipped: %d", len(self.unreadable))
            tqdm.write(f"the model is in {self.output_dir}")
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        # Last, as it may fail, and may take longer than processes wait for each other.
        if self.is_main and self.args.push_to_hub:
            repo_id = self.args.hub_model_id or self.output_dir.resolve().name
            tqdm.write(f"shared at {publish(self.output_dir, repo_id, private=self.args.hub_private_repo)}")
        return self.last_evaluation

    def _plot_reconstruction(self) -> bool:
        """Draws eight images if the algorithm reconstructs images."""
        dataset = self.eval_dataset if self.eval_dataset is not None else self.train_dataset
        if isinstance(dataset, datasets.IterableDataset):
            return False
        loader = build_eval_loader(dataset, self.image_processor, batch_size=min(8, len(dataset)))
        batches = (batch["pixel_values"] for batch in loader)
        pixel_values = next(batch for batch in batches if len(batch)).to(self.accelerator.device)
        self._seed(0, stream=2)
        self.model.eval()
        with torch.no_grad():
            try:
                outputs = self.model(pixel_values, mode="predict")
            except NotImplementedError:  # somebody's own algorithm may do without
                return False
        self.model.train()
        if not isinstance(outputs, ReconstructionOutput):
            return False
        plot_reconstruction(
            self.normalize.denormalize(pixel_values),
            outputs.masked_image,
            outputs.reconstruction,
            self.output_dir / "reconstruction.png",
            outputs.mask,
        )
        return True

    # Checks and plans

    def _check_evaluation(self) -> None:
        if self.eval_dataset is None:
            return
        if "label" not in self.eval_dataset.column_names:
            raise ValueError(
                "the evaluation needs labels, and the evaluation split has none; its columns are "
                f"{', '.join(self.eval_dataset.column_names)}. Leave the split out or name the column with "
                "--label_column_name"
            )
        if isinstance(self.train_dataset, datasets.IterableDataset):
            raise ValueError(
                "the kNN evaluation needs the training images by index: leave --streaming or the split out"
            )

    def _plan_steps(self) -> None:
        args = self.args
        self.global_batch_size = (
            args.per_device_train_batch_size * self.accelerator.num_processes * args.gradient_accumulation_steps
        )
        self.steps_per_epoch = None
        if not isinstance(self.train_dataset, datasets.IterableDataset):
            self.steps_per_epoch = len(self.loader.batch_sampler) // args.gradient_accumulation_steps
            if self.steps_per_epoch == 0:
                raise ValueError(
                    f"an optimizer step takes {self.global_batch_size} images, and the dataset has "
                    f"{len(self.train_dataset)}: make per_device_train_batch_size or gradient_accumulation_steps smaller"
                )
        if args.max_train_steps is not None:
            self.total_steps = args.max_train_steps
        elif self.steps_per_epoch is not None:
            self.total_steps = math.ceil(args.num_train_epochs * self.steps_per_epoch)
        else:
            raise ValueError("a streamed dataset has no known length: give --max_train_steps")

    def _fractional_epoch(self) -> float:
        if self.steps_per_epoch is None:
            return float(self.epoch)
        return self.epoch + self.step_in_epoch / self.steps_per_epoch

    def _identity(self) -> dict:
        """What a resumed run has to have in common with the first one to end like it, as JSON."""
        streamed = isinstance(self.train_dataset, datasets.IterableDataset)
        return {
            **self._training_arguments(),
            "images": None if streamed else len(self.train_dataset),
            "views": self.views,
            **json.loads(self.model.config.to_json_string(use_diff=False)),
        }

    def _training_arguments(self) -> dict:
        names = (
            "seed num_train_epochs max_train_steps optim learning_rate base_learning_rate lr_scheduler_type min_lr_rate "
            "lr_milestones warmup_epochs warmup_steps weight_decay decay_norm_and_bias norm_and_bias_lr_scale "
            "sgd_momentum adam_beta1 adam_beta2 adam_epsilon max_grad_norm loss_chunk_size"
        )
        return {name: getattr(self.args, name) for name in names.split()} | {
            "mixed_precision": self.accelerator.mixed_precision,
            "global_batch_size": self.global_batch_size,
            "num_processes": self.accelerator.num_processes,
            "total_steps": self.total_steps,
        }

    def _seed(self, number: int, stream: int) -> None:
        entropy = [self.args.seed, stream, number, self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
