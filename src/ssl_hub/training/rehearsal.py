"""How long a run takes, and how much memory, by a few of its steps and a part of an evaluation."""

import logging
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import datasets
import torch

from ..data.workers import close_loader, explain_worker_errors
from .arguments import Arguments, PretrainingArguments
from .optimization import count_warmup_steps
from .pretraining import build_trainer, with_batch_that_fits
from .recipes import Recipe
from .timing import format_seconds, peak_memory
from .trainer import SSLTrainer

# Seconds for which steps are timed, and the number that counts at least.
_TIMED_SECONDS, _MIN_TIMED = 8, 2
# Images at least and at most of the part of an evaluation.
_MIN_EVALUATED, _MAX_EVALUATED = 16, 512


@dataclass(frozen=True)
class Timing:
    """What a part of a run took.

    Args:
        args: with the batch that fits.
        total_steps, steps_per_epoch, warmup_steps: of the run; the second is None for a stream.
        wait_share: of the steps' time that goes into waiting for images.
        epoch_seconds: what comes before each epoch, such as clustering.
        evaluation_seconds: of a whole evaluation.
        memory: the peak, in bytes.
        device: "cpu", "cuda", ...
    """

    args: PretrainingArguments
    total_steps: int
    steps_per_epoch: int | None
    warmup_steps: int
    step_seconds: float
    wait_share: float
    epoch_seconds: float
    evaluation_seconds: float
    memory: int
    device: str

    def seconds(self, steps: int, num_evaluations: int) -> float:
        epochs = math.ceil(steps / self.steps_per_epoch) if self.steps_per_epoch else 1
        return steps * self.step_seconds + epochs * self.epoch_seconds + num_evaluations * self.evaluation_seconds

    def steps_in(self, seconds: float, num_evaluations: int) -> int:
        """How many steps fit in a time; at least as many as evaluations."""
        left = seconds - num_evaluations * self.evaluation_seconds
        per_step = self.step_seconds + self.epoch_seconds / (self.steps_per_epoch or math.inf)
        return max(num_evaluations, int(left / per_step))

    def describe(self, steps: int, num_evaluations: int) -> str:
        total = self.seconds(steps, num_evaluations)
        images = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps / self.step_seconds
        where = "memory" if self.device == "cpu" else f"{self.device} memory"
        parts = [
            f"about {round(total / 60)} minutes" if 120 <= total < 3600 else f"about {format_seconds(total)}",
            f"{self.memory / 2**30:.1f} GiB of {where}",
            f"{images:.0f} images a second",
        ]
        if self.evaluation_seconds:
            share = num_evaluations * self.evaluation_seconds / total
            parts.append(
                f"{num_evaluations} evaluations of {format_seconds(self.evaluation_seconds)}, {share:.0%} of the time"
            )
        return "; ".join(parts)


def estimate_run(arguments: Arguments) -> str:
    """How long a run takes, and how much memory; nothing is written."""
    timing = rehearse(arguments)
    every = timing.args.eval_steps or timing.total_steps
    return timing.describe(timing.total_steps, 1 + math.ceil(timing.total_steps / every))


def rehearse(
    arguments: Arguments, train_dataset: datasets.Dataset | None = None, eval_dataset: datasets.Dataset | None = None
) -> Timing:
    """Takes a few steps of a run, with a batch that fits, evaluates on some images, and leaves nothing behind.

    Args:
        train_dataset, eval_dataset: see `build_trainer`.
    """

    def measure(recipe: Recipe, model_args, data_args, args: PretrainingArguments) -> Timing:
        with tempfile.TemporaryDirectory() as folder, quiet(), explain_worker_errors():
            changed = args.replace(output_dir=folder, report_to="none", resume_from_checkpoint=None)
            trainer = build_trainer(recipe, model_args, data_args, changed, train_dataset, eval_dataset)
            try:
                return _measure(trainer, args)
            finally:
                close_loader(trainer.loader)

    return with_batch_that_fits(measure, arguments)


def _measure(trainer: SSLTrainer, args: PretrainingArguments) -> Timing:
    device = trainer.accelerator.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer.prepared_model.train()
    started = time.perf_counter()
    trainer.begin_epoch()
    epoch_seconds = time.perf_counter() - started
    waits: list[float] = []
    durations: list[float] = []
    batches = _batches(trainer)
    while sum(durations) < _TIMED_SECONDS or len(durations) <= _MIN_TIMED:
        started = time.perf_counter()
        micro_batches = list(islice(batches, args.gradient_accumulation_steps))
        waits.append(time.perf_counter() - started)
        trainer.train_step(micro_batches)
        trainer.log.check_finite()  # waits for the device
        durations.append(time.perf_counter() - started)
    loaded_ahead = 1 + 2 * args.dataloader_num_workers  # whose steps did not wait
    timed = slice(min(loaded_ahead, len(durations) - _MIN_TIMED), None)
    step_seconds = sum(durations[timed]) / len(durations[timed])
    return Timing(
        args=args,
        total_steps=trainer.total_steps,
        steps_per_epoch=trainer.steps_per_epoch,
        warmup_steps=count_warmup_steps(trainer.args, trainer.steps_per_epoch),
        step_seconds=step_seconds,
        wait_share=sum(waits[timed]) / sum(durations[timed]),
        epoch_seconds=epoch_seconds,
        evaluation_seconds=_time_evaluation(trainer, step_seconds / trainer.global_batch_size),
        memory=round(peak_memory(device) * 2**20),
        device=device.type,
    )


def _batches(trainer: SSLTrainer) -> Iterator[dict]:
    epoch = 0
    while True:
        trainer.loader.batch_sampler.set_epoch(epoch, 0, trainer.sampling_weights)
        yield from trainer.loader
        epoch += 1


def _time_evaluation(trainer: SSLTrainer, image_seconds: float) -> float:
    """Seconds of an evaluation, by those of a part that takes about as long as the steps that were timed.

    Args:
        image_seconds: that training takes.
    """
    evaluation = trainer.run_evaluation
    if not evaluation.evaluators:
        return 0.0
    size = min(max(int(_TIMED_SECONDS / image_seconds), _MIN_EVALUATED), _MAX_EVALUATED)
    part = evaluation.part(size)
    started = time.perf_counter()
    part(trainer.model)
    return (time.perf_counter() - started) * evaluation.num_passes / part.num_passes


@contextmanager
def quiet() -> Iterator[None]:
    """What a rehearsal warns of, the run does again."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
