"""A run that nobody described: chosen to fit a folder of images and the device, with the reason of every choice.

What was given is never chosen. The length follows from a few steps that are timed, and is a number of steps from then on.
"""

import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import huggingface_hub
import torch
from accelerate import PartialState

from ..data.datasets import load_image_dataset
from ..data.files import NoSplitError
from ..data.survey import survey_images
from ..data.workers import close_loader, explain_worker_errors
from ..printing import printable
from .arguments import Arguments, PretrainingArguments, build_arguments
from .checkpointing import check_output_dir
from .optimization import count_warmup_steps
from .pretraining import build_trainer, count_held_out, with_batch_that_fits
from .recipes import Recipe, load_recipe, parse_overrides
from .timing import count_cores, peak_memory
from .trainer import SSLTrainer

DEFAULT_RECIPE = "simclr-resnet18-small"
# Fewer images are refused; with fewer than the second number pretrained weights matter most.
_MIN_IMAGES, _FEW_IMAGES = 32, 10_000
# Pixels to which smaller images are blown up, of which a ResNet leaves 2 x 2 places; and at most on a CPU, where 96 would
# halve the epochs that there is time for.
_MIN_SIZE = _CPU_SIZE = 64
_MIN_STEPS_PER_EPOCH = 4
# Seconds of a run whose length was not given.
_CPU_BUDGET, _BUDGET = 20 * 60, 60 * 60
# Evaluations besides the first at most, and their share of that time.
_MAX_EVALUATIONS, _EVALUATION_SHARE = 5, 0.15
# Images that are held out, as a share and at most; training images at most in the bank of the kNN evaluation.
_HELD_OUT, _MAX_HELD_OUT, _CPU_BANK, _BANK = 0.1, 2048, 2048, 10_000
_MAX_WORKERS = 8
# Seconds for which steps are timed, and the number that counts at least.
_TIMED_SECONDS, _MIN_TIMED = 8, 2
# Backbones that are on the Hub, and the fields by which they are those of a recipe.
_PRETRAINED = {
    "microsoft/resnet-18": {"model_type": "resnet", "layer_type": "basic", "depths": [2, 2, 2, 2]},
    "microsoft/resnet-34": {"model_type": "resnet", "layer_type": "basic", "depths": [3, 4, 6, 3]},
    "microsoft/resnet-50": {"model_type": "resnet", "layer_type": "bottleneck", "depths": [3, 4, 6, 3]},
    "facebook/deit-tiny-patch16-224": {"model_type": "vit", "hidden_size": 192, "patch_size": 16},
    "facebook/deit-small-patch16-224": {"model_type": "vit", "hidden_size": 384, "patch_size": 16},
    "google/vit-base-patch16-224-in21k": {"model_type": "vit", "hidden_size": 768, "patch_size": 16},
}


def plan_pretraining(images: str, **given) -> Arguments:
    """Chooses the arguments of a run on a folder of images, and says each choice and why.

    Args:
        images: a folder, with `train` and `validation`, `val` or `test` in it or not; or the name of a dataset.
        given: arguments of `build_arguments`, which stay as they are.

    Raises:
        ValueError, OSError: there are no such images, too few of them, or an argument does not fit.
    """
    plan = _Plan(images, given)
    if plan.is_resumed():
        return plan.resume()
    plan.look_at_images()
    plan.choose_model()
    plan.choose_batch()
    plan.choose_device_settings()
    plan.choose_length()
    return plan.arguments()


class _Plan:
    """The choices so far, in `values`; of what was `asked` for none is made."""

    def __init__(self, images: str, given: dict):
        path = os.path.expanduser(images)
        self.source = Path(path) if os.path.exists(path) else images
        self.asked, self.values = set(given), dict(given)
        self._choose("recipe", DEFAULT_RECIPE)
        self.recipe = load_recipe(self.values["recipe"])
        name = Path(path).resolve().stem if isinstance(self.source, Path) else images.rpartition("/")[2]
        self._choose("output_dir", os.path.join("runs", f"{name}-{Path(self.recipe.name).stem}"))
        self._choose("train_dir" if isinstance(self.source, Path) else "dataset_name", path)
        check_output_dir(Path(self.values["output_dir"]), given.get("resume_from_checkpoint"))
        self.device, self.is_main = PartialState().device, PartialState().is_main_process
        self.num_processes = PartialState().num_processes

    def arguments(self) -> Arguments:
        return build_arguments(**self.values)

    def _choose(self, name: str, value) -> None:
        if name not in self.asked:
            self.values[name] = value

    def _say(self, what: str, choice: object, why: str = "", asked: tuple[str, ...] = ()) -> None:
        """Writes one line.

        Args:
            why: it was chosen, unless one of the arguments `asked` was given.
        """
        if self.is_main:
            why = "as you said" if self.asked & set(asked) else why
            print(f"{what:<10}  {printable(choice)}" + (f": {printable(why)}" if why else ""), flush=True)

    # A run that resumes has chosen already

    def is_resumed(self) -> bool:
        return "resume_from_checkpoint" in self.asked and self._recipe_file().exists()

    def _recipe_file(self) -> Path:
        return Path(self.values["output_dir"]) / "recipe.yaml"

    def resume(self) -> Arguments:
        self._say("resuming", self.values["output_dir"], "all as its recipe.yaml says, but for what you give")
        given = {name: self.values[name] for name in {*self.asked, "output_dir"}}
        recipe, *others = build_arguments(**given | {"recipe": str(self._recipe_file())})
        recipe.name = self.recipe.name
        return recipe, *others

    # Choices

    def look_at_images(self) -> None:
        options = {f"{kind}_column": self.values.get(f"{kind}_column_name") for kind in ("image", "label")}
        options["config_name"] = self.values.get("dataset_config_name")
        images = load_image_dataset(self.source, self.values.get("train_split", "train"), **options)
        if len(images) < _MIN_IMAGES:
            raise ValueError(
                f"{str(self.source)!r} has {len(images)} images to train on, and pretraining compares images with one "
                f"another: give at least {_MIN_IMAGES}, better thousands, or choose all by --recipe and --train_dir"
            )
        survey = survey_images(images)
        self._say("images", survey)
        for warning in survey.warnings():
            self._say("warning", warning)
        self.side, self.num_train = survey.side, len(images)
        self._choose_evaluation(options)

    def _choose_evaluation(self, options: dict) -> None:
        for name in ("validation_dir", "eval_split", "train_val_split"):
            if name in self.asked:
                return self._say("evaluation", f"{name} {self.values[name]}", "as you said")
        for split in ("validation", "test"):
            try:
                count = len(load_image_dataset(self.source, split, **options))
            except NoSplitError:
                continue
            self._choose("eval_split", split)
            return self._say("evaluation", f"{count:,} images of {split!r}", "they are beside the training images")
        share = round(min(_HELD_OUT, _MAX_HELD_OUT / self.num_train), 4)
        self._choose("train_val_split", share)
        held_out = count_held_out(self.num_train, share)
        self.num_train -= held_out
        return self._say("evaluation", f"{held_out:,} images are held out", "there is no validation or test folder")

    def choose_model(self) -> None:
        self._say("recipe", self.recipe.name, "a method for any images, on one device", asked=("recipe",))
        self._choose_image_size()
        self._choose_weights()

    def _choose_image_size(self) -> None:
        overrides = self.values.get("config_overrides") or ""
        own: int = self.recipe.build_config(overrides).image_size
        size = min(own, max(_MIN_SIZE, 32 * math.ceil(self.side / 32)))
        why = f"{own} of the recipe would be more than the images have"
        if self.device.type == "cpu" and size > _CPU_SIZE:
            size, why = min(size, _CPU_SIZE), f"{own} of the recipe would take a CPU too long"
        if overrides and "image_size" in parse_overrides(overrides):
            self._say("image size", f"{own} pixels", "as you said")
        elif size == own:
            self._say("image size", f"{own} pixels", "that of the recipe")
        else:
            self.values["config_overrides"] = ",".join(filter(None, (overrides, f"image_size={size}")))
            self._say("image size", f"{size} pixels", why)

    def _choose_weights(self) -> None:
        if "model_name_or_path" in self.asked:
            name = self.values["model_name_or_path"]
            return self._say("weights", "from scratch" if name == "none" else name, "as you said")
        if self.num_train >= _FEW_IMAGES:
            return self._say("weights", "from scratch", f"{self.num_train:,} images are enough for that")
        name, problem = find_pretrained(self.recipe, self.values.get("config_overrides"))
        if problem:
            return self._say("weights", "from scratch", problem)
        self._choose("model_name_or_path", name)
        return self._say(
            "weights", name, f"{self.num_train:,} images are few; --model_name_or_path none is from scratch"
        )

    def choose_batch(self) -> None:
        batch = own = self.recipe.training.get("per_device_train_batch_size", 256)
        accumulation = self.values.get("gradient_accumulation_steps") or self.recipe.training.get(
            "gradient_accumulation_steps", 1
        )
        room = self.num_train // (_MIN_STEPS_PER_EPOCH * accumulation * self.num_processes)
        if batch > room:
            batch = 2 ** int(math.log2(max(room, 1)))
        self._choose("per_device_train_batch_size", batch)
        self._choose("auto_find_batch_size", self.num_processes == 1)
        self._say(
            "batch",
            f"{self.values['per_device_train_batch_size']} images",
            "that of the recipe" if batch == own else f"{self.num_train:,} images are few for the {own} of the recipe",
            asked=("per_device_train_batch_size",),
        )
        self._choose("knn_max_samples", min(self.num_train, _CPU_BANK if self.device.type == "cpu" else _BANK))

    def choose_device_settings(self) -> None:
        precision, why = choose_precision(self.device)
        self._choose("mixed_precision", precision)
        precision = self.values["mixed_precision"]
        self._say("precision", "float32" if precision == "no" else precision, why, asked=("mixed_precision",))
        cores = count_cores()
        # On a CPU the model computes on the same cores.
        workers = min(_MAX_WORKERS, cores // 4 if self.device.type == "cpu" else cores // self.num_processes)
        self._choose("dataloader_num_workers", max(1, workers) if cores > 1 else 0)
        self._say(
            "workers",
            f"{self.values['dataloader_num_workers']} to load images",
            f"{cores} cores" + (", which the model needs too" if self.device.type == "cpu" else ""),
            asked=("dataloader_num_workers",),
        )

    def choose_length(self) -> None:
        asked = ("max_train_steps", "num_train_epochs")
        if self.num_processes > 1:
            self._say("length", "that of the recipe", "steps are timed on a single process only", asked=asked)
            return
        timing = time_steps(self.arguments())
        batch, found = self.values["per_device_train_batch_size"], timing.args.per_device_train_batch_size
        if found < batch:
            self._say("batch", f"{found} images, {batch // found} times a step", f"{batch} do not fit in memory")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            self.values[name] = getattr(timing.args, name)
        budget = _CPU_BUDGET if self.device.type == "cpu" else _BUDGET
        num_evaluations = 1 + timing.evaluations_in(_EVALUATION_SHARE * budget)
        steps, why = timing.total_steps, "that of the recipe"
        if not self.asked & set(asked) and (fitting := timing.steps_in(budget, num_evaluations)) < steps:
            steps, why = fitting, f"what fits in {budget // 60} minutes; --num_train_epochs sets another"
        self._choose("max_train_steps", steps)
        self._say("length", f"{steps:,} steps, {steps / timing.steps_per_epoch:.1f} epochs", why, asked=asked)
        if not self.asked & {"warmup_steps", "warmup_epochs"}:
            self.values["warmup_steps"] = round(steps * timing.warmup_steps / timing.total_steps)
        every = math.ceil(steps / (num_evaluations - 1))
        self._choose("eval_steps", every)
        self._choose("checkpointing_steps", str(every))
        self._choose("logging_steps", max(1, min(50, steps // 50)))
        self._say("output", self.values["output_dir"], asked=("output_dir",))
        self._say("estimate", timing.describe(steps, 1 + math.ceil(steps / int(self.values["eval_steps"]))))


def choose_precision(device: torch.device) -> tuple[str, str]:
    """The mixed precision for a device, and why."""
    if device.type != "cuda":
        return "no", f"the device is {'a CPU' if device.type == 'cpu' else device.type}"
    name = torch.cuda.get_device_name(device)
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", f"{name} has it"
    return "fp16", f"{name} has no bf16"


def find_pretrained(recipe: Recipe, overrides: str | None = None) -> tuple[str | None, str]:
    """The name of a pretrained backbone such as the recipe's, or None; and what the problem is.

    It has to be on the Hub within reach, or in the cache, and to fit the recipe.
    """
    backbone = recipe.build_config(overrides).backbone_config
    alike = [
        name
        for name, fields in _PRETRAINED.items()
        if all(getattr(backbone, key, None) == value for key, value in fields.items())
    ]
    if not alike:
        return None, f"no pretrained backbone is known that is like that of {recipe.name}"
    name = alike[0]
    try:
        if huggingface_hub.try_to_load_from_cache(name, "config.json") is None:
            huggingface_hub.HfApi().model_info(name, timeout=10)  # would be tried for half a minute by what loads it
        with _quiet():
            recipe.build_model(overrides, name)
    except Exception as error:  # of whatever library huggingface_hub takes for the network
        return None, f"{name} cannot be had ({str(error).splitlines()[0][:200]})"
    return name, ""


@dataclass(frozen=True)
class Timing:
    """What a few steps of a run took.

    Args:
        args: with the batch that fits.
        total_steps, steps_per_epoch, warmup_steps: of the run; the second is None for a stream.
        epoch_seconds: what comes before each epoch, such as clustering.
        memory: the peak, in bytes.
        device: "cpu", "cuda", ...
    """

    args: PretrainingArguments
    total_steps: int
    steps_per_epoch: int | None
    warmup_steps: int
    step_seconds: float
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

    def evaluations_in(self, seconds: float) -> int:
        """How many evaluations besides the first one take no longer; one at least."""
        if self.evaluation_seconds == 0:
            return _MAX_EVALUATIONS
        return min(_MAX_EVALUATIONS, max(1, int(seconds / self.evaluation_seconds) - 1))

    def describe(self, steps: int, num_evaluations: int) -> str:
        images = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps / self.step_seconds
        where = "memory" if self.device == "cpu" else f"{self.device} memory"
        return (
            f"about {_duration(self.seconds(steps, num_evaluations))}; {self.memory / 2**30:.1f} GiB of {where}; "
            f"{images:.0f} images a second, and {num_evaluations} evaluations of {_duration(self.evaluation_seconds)}"
        )


def estimate_run(arguments: Arguments) -> str:
    """How long a run takes, and how much memory, from a few of its steps that are timed; nothing is written."""
    timing = time_steps(arguments)
    every = timing.args.eval_steps or timing.total_steps
    return timing.describe(timing.total_steps, 1 + math.ceil(timing.total_steps / every))


def time_steps(arguments: Arguments) -> Timing:
    """Takes a few steps of a run, with a batch that fits, and leaves nothing behind."""

    def measure(recipe: Recipe, model_args, data_args, args: PretrainingArguments) -> Timing:
        with tempfile.TemporaryDirectory() as folder, _quiet(), explain_worker_errors():
            changed = args.replace(output_dir=folder, report_to="none", resume_from_checkpoint=None)
            trainer = build_trainer(recipe, model_args, data_args, changed)
            try:
                return _time_steps(trainer, args)
            finally:
                close_loader(trainer.loader)

    return with_batch_that_fits(measure, arguments)


def _time_steps(trainer: SSLTrainer, args: PretrainingArguments) -> Timing:
    device = trainer.accelerator.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer.prepared_model.train()
    started = time.perf_counter()
    trainer._begin_epoch()
    epoch_seconds = time.perf_counter() - started
    durations: list[float] = []
    batches = _batches(trainer)
    while sum(durations) < _TIMED_SECONDS or len(durations) <= _MIN_TIMED:
        started = time.perf_counter()
        trainer._train_step(list(islice(batches, args.gradient_accumulation_steps)))
        trainer.log.check_finite()  # waits for the device
        durations.append(time.perf_counter() - started)
    loaded_ahead = 1 + 2 * args.dataloader_num_workers  # whose steps did not wait
    timed = durations[min(loaded_ahead, len(durations) - _MIN_TIMED) :]
    return Timing(
        args=args,
        total_steps=trainer.total_steps,
        steps_per_epoch=trainer.steps_per_epoch,
        warmup_steps=count_warmup_steps(trainer.args, trainer.steps_per_epoch),
        step_seconds=sum(timed) / len(timed),
        epoch_seconds=epoch_seconds,
        evaluation_seconds=_time_evaluation(trainer),
        memory=round(peak_memory(device) * 2**20),
        device=device.type,
    )


def _batches(trainer: SSLTrainer) -> Iterator[dict]:
    epoch = 0
    while True:
        trainer.loader.batch_sampler.set_epoch(epoch, 0, trainer.sampling_weights)
        yield from trainer.loader
        epoch += 1


def _time_evaluation(trainer: SSLTrainer) -> float:
    """Seconds that the features of an evaluation take, by those of one batch."""
    evaluation, config = trainer.run_evaluation, trainer.model.config
    if not evaluation.evaluators:
        return 0.0
    num_images = len(evaluation.eval_dataset)
    for evaluator in evaluation.evaluators:
        if evaluator.needs_train_features:
            num_images += min(evaluator.max_train_samples or math.inf, len(trainer.train_dataset))
    size = (trainer.args.per_device_eval_batch_size, config.num_channels, config.image_size, config.image_size)
    images = torch.zeros(size, device=trainer.accelerator.device)
    trainer.model.eval()
    with torch.no_grad():
        for _ in range(2):
            started = time.perf_counter()
            trainer.model(images).pooler_output.sum().item()  # waits for the device
            seconds = time.perf_counter() - started
    return num_images / len(images) * seconds


@contextmanager
def _quiet() -> Iterator[None]:
    """What a rehearsal warns of, the run does again."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _duration(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
