"""A run that nobody described: chosen to fit a folder of images and the device, with the reason of every choice.

What was given is never chosen. The length follows from a few steps that are timed, and is a number of steps from then on.
"""

import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import datasets
import huggingface_hub
import torch
from accelerate import PartialState

from ..data.caching import estimate_cache_size, free_memory
from ..data.datasets import load_image_dataset, match_labels
from ..data.files import NoSplitError
from ..data.survey import survey_images
from ..data.views import build_views
from ..evaluation.view_features import choose_views
from ..printing import printable
from .arguments import Arguments, build_arguments
from .checkpointing import check_output_dir
from .pretraining import load_images
from .recipes import Recipe, load_recipe, parse_overrides
from .rehearsal import Timing, quiet, rehearse
from .timing import count_cores, waits_long

DEFAULT_RECIPE = "simclr-resnet18-small"
# Fewer images are refused; with fewer than the second number pretrained weights matter most.
_MIN_IMAGES, _FEW_IMAGES = 32, 10_000
# Pixels to which smaller images are blown up, of which a ResNet leaves 2 x 2 places; and at most on a CPU, where 96 would
# halve the epochs that there is time for.
_MIN_SIZE = _CPU_SIZE = 64
# By what a new ResNet of more channels than these is narrower on a CPU, see docs/small_data.md.
_CPU_NARROWER, _CPU_CHANNELS = 4, 128
_MIN_STEPS_PER_EPOCH = 4
# Seconds of a run whose length was not given.
_CPU_BUDGET, _BUDGET = 20 * 60, 60 * 60
# Evaluations besides the first at most, and the share of a run's time that all of them take.
_MAX_EVALUATIONS, _EVALUATION_SHARE = 5, 0.1
# Images that are held out: a share; of few images as many as that, but for no more than a larger share; and at most.
_HELD_OUT, _FEW_HELD_OUT, _LARGE_SHARE, _MAX_HELD_OUT = 0.1, 64, 0.2, 2048
# Training images at most that the kNN evaluation and the linear probe use.
_CPU_BANK, _BANK = 2048, 10_000
# Of these held-out images, and so many views of each, LiDAR and alignment are.
_VIEWED_IMAGES, _VIEWS = 256, 4
_MAX_WORKERS = 8
# Decoded images are kept where they take this share of the free memory at most, and are shown so often at least.
_MEMORY_SHARE, _MIN_EPOCHS_TO_CACHE = 0.25, 2
# Backbones that are on the Hub, and the fields by which they are those of a recipe.
_PRETRAINED = {
    "microsoft/resnet-18": {"model_type": "resnet", "layer_type": "basic", "depths": [2, 2, 2, 2]},
    "microsoft/resnet-34": {"model_type": "resnet", "layer_type": "basic", "depths": [3, 4, 6, 3]},
    "microsoft/resnet-50": {"model_type": "resnet", "layer_type": "bottleneck", "depths": [3, 4, 6, 3]},
    "facebook/deit-tiny-patch16-224": {"model_type": "vit", "hidden_size": 192, "patch_size": 16},
    "facebook/deit-small-patch16-224": {"model_type": "vit", "hidden_size": 384, "patch_size": 16},
    "google/vit-base-patch16-224-in21k": {"model_type": "vit", "hidden_size": 768, "patch_size": 16},
}


class Plan(NamedTuple):
    """What was chosen, and the images, unless a run that resumes loads them itself."""

    arguments: Arguments
    train_dataset: datasets.Dataset | None = None
    eval_dataset: datasets.Dataset | None = None


def plan_pretraining(images: str, **given) -> Plan:
    """Chooses the arguments of a run on a folder of images, and says each choice and why.

    Args:
        images: a folder, with `train` and `validation`, `val` or `test` in it or not; or the name of a dataset.
        given: arguments of `build_arguments`, which stay as they are.

    Returns:
        What `run_pretraining` takes.

    Raises:
        ValueError, OSError: there are no such images, too few of them, or an argument does not fit.
    """
    planner = _Planner(images, given)
    if planner.is_resumed():
        return Plan(planner.resume())
    planner.look_at_images()
    planner.choose_model()
    planner.choose_batch()
    planner.choose_evaluators()
    planner.choose_device_settings()
    planner.choose_length()
    return Plan(planner.arguments(), planner.train_dataset, planner.eval_dataset)


class _Planner:
    """The choices so far, in `values`; of what was `asked` for none is made."""

    def __init__(self, images: str, given: dict):
        if given.get("streaming"):
            raise ValueError(
                "--streaming reads images while a run goes on, and a plan looks at them first: leave it out, or name all by "
                "--recipe, --dataset_name and --max_train_steps"
            )
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
        self.side = survey.side
        self._choose_images_to_evaluate_on(images, options)

    def _choose_images_to_evaluate_on(self, images: datasets.Dataset, options: dict) -> None:
        asked = [name for name in ("validation_dir", "eval_split", "train_val_split") if name in self.asked]
        found, why = None, "there is no validation or test folder"
        if not asked:
            for split in ("validation", "test"):
                try:
                    found = load_image_dataset(self.source, split, **options)
                except NoSplitError:
                    continue
                self._choose("eval_split", split)
                why = "they are beside the training images"
                break
            else:
                few = min(_FEW_HELD_OUT / len(images), _LARGE_SHARE)
                self._choose("train_val_split", round(min(max(_HELD_OUT, few), _MAX_HELD_OUT / len(images)), 4))
        _, _, data_args, args = self.arguments()
        self.train_dataset, self.eval_dataset = load_images(data_args, args.seed, images, found)
        self.num_train = len(self.train_dataset)
        if self.eval_dataset is None:
            return self._say("evaluation", "a sample of the training images", asked=tuple(asked))
        count = f"{len(self.eval_dataset):,} images"
        if split := self.values.get("eval_split"):
            return self._say("evaluation", f"{count} of {split!r}", why, tuple(asked))
        where = self.values.get("validation_dir")
        return self._say("evaluation", f"{count} of {where}" if where else f"{count} are held out", why, tuple(asked))

    def choose_model(self) -> None:
        self._say("recipe", self.recipe.name, "a method for any images, on one device", asked=("recipe",))
        self._choose_image_size()
        self._choose_weights()
        self._choose_width()

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

    def _choose_width(self) -> None:
        """On a CPU, that of a network which sees the images often enough to learn something in the time."""
        overrides = self.values.get("config_overrides") or ""
        backbone = self.recipe.build_config(overrides).backbone_config
        is_new = self.values.get("model_name_or_path", "none") == "none"
        if self.device.type != "cpu" or backbone.model_type != "resnet" or not is_new:
            return
        if overrides and "backbone_config" in parse_overrides(overrides):
            return self._say("width", f"{backbone.hidden_sizes[-1]} channels", "as you said")
        own, narrow = backbone.hidden_sizes, [width // _CPU_NARROWER for width in backbone.hidden_sizes]
        if own[-1] <= _CPU_CHANNELS:
            return self._say("width", f"{own[-1]} channels", "that of the recipe")
        fields = {"hidden_sizes": narrow, "embedding_size": backbone.embedding_size // _CPU_NARROWER}
        changes = [f"backbone_config.{name}={_compact(value)}" for name, value in fields.items()]
        self.values["config_overrides"] = ",".join(filter(None, (overrides, *changes)))
        why = f"with the {own[-1]} of the recipe a CPU sees few images; --config_overrides backbone_config.hidden_sizes"
        return self._say("width", f"{narrow[-1]} channels", f"{why}={_compact(own)} has them")

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

    def choose_evaluators(self) -> None:
        self._choose("knn_max_samples", min(self.num_train, _CPU_BANK if self.device.type == "cpu" else _BANK))
        if "evaluation" in self.asked or self.recipe.evaluation is not None:
            types = self.arguments()[-1].evaluation
            return self._say("metrics", types or "those of the recipe", asked=("evaluation",))
        chosen: list[dict] = [{"type": "label_free"}, {"type": "spectrum"}]
        said = "RankMe and others that need no labels"
        image_size = self.recipe.build_config(self.values.get("config_overrides")).image_size
        try:
            choose_views(build_views(self.recipe.views, image_size), _VIEWS)
        except ValueError:  # of patches, which no model is evaluated on
            pass
        else:
            chosen.append({"type": "views", "num_images": _VIEWED_IMAGES, "num_views": _VIEWS})
        why = "in class folders, kNN and a linear probe would be added"
        if self._has_labels():
            chosen += [{"type": "knn"}, {"type": "linear_probe", "max_samples": self.values["knn_max_samples"] or None}]
            said, why = f"kNN and a linear probe beside chance and raw pixels; {said}", "there are classes"
        self.values["evaluation"] = json.dumps(chosen)
        return self._say("metrics", said, why)

    def _has_labels(self) -> bool:
        if self.eval_dataset is None:
            return False
        with quiet():
            matched = match_labels(self.eval_dataset, self.train_dataset)
        return all("label" in each.column_names for each in (matched, self.train_dataset))

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
        timing = rehearse(self.arguments(), self.train_dataset, self.eval_dataset)
        batch, found = self.values["per_device_train_batch_size"], timing.args.per_device_train_batch_size
        if found < batch:
            self._say("batch", f"{found} images, {batch // found} times a step", f"{batch} do not fit in memory")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            self.values[name] = getattr(timing.args, name)
        budget = _CPU_BUDGET if self.device.type == "cpu" else _BUDGET
        num_evaluations = 1 + _evaluations_in(_EVALUATION_SHARE * budget, timing)
        steps, why = timing.total_steps, "that of the recipe"
        if not self.asked & set(asked) and (fitting := timing.steps_in(budget, num_evaluations)) < steps:
            steps, why = fitting, f"what fits in {budget // 60} minutes; --num_train_epochs sets another"
        self._choose("max_train_steps", steps)
        self._choose_loading(waits_long(timing.wait_share), steps / timing.steps_per_epoch)
        self._say("length", f"{steps:,} steps, {steps / timing.steps_per_epoch:.1f} epochs", why, asked=asked)
        if not self.asked & {"warmup_steps", "warmup_epochs"}:
            self.values["warmup_steps"] = round(steps * timing.warmup_steps / timing.total_steps)
        every = math.ceil(steps / (num_evaluations - 1))
        self._choose("eval_steps", every)
        self._choose("checkpointing_steps", str(every))
        self._choose("logging_steps", max(1, min(50, steps // 50)))
        self._say("output", self.values["output_dir"], asked=("output_dir",))
        self._say("estimate", timing.describe(steps, 1 + math.ceil(steps / int(self.values["eval_steps"]))))

    def _choose_loading(self, waits: bool, epochs: float) -> None:
        asked = ("cache_images", "augment_on_device")
        if given := self.asked & set(asked):
            for name in sorted(given):
                self._say("loading", f"{name} {self.values[name]}", asked=asked)
            return
        image_size = self.recipe.build_config(self.values.get("config_overrides")).image_size
        size = estimate_cache_size(self.train_dataset, build_views(self.recipe.views, image_size))
        free = free_memory(torch.device("cpu"))
        cache, augments, why = choose_loading(self.device.type, waits, epochs, size, free, free_memory(self.device))
        self.values |= {"cache_images": cache, "augment_on_device": augments}
        self._say("cache", cache, why)
        if augments:
            self._say("views", "rendered on the GPU", "it waits for images")


def _evaluations_in(seconds: float, timing: Timing) -> int:
    """How many evaluations besides the first one take no longer; one at least."""
    if timing.evaluation_seconds == 0:
        return _MAX_EVALUATIONS
    return min(_MAX_EVALUATIONS, max(1, int(seconds / timing.evaluation_seconds) - 1))


def choose_loading(
    device: str, waits: bool, epochs: float, size: int, free: int, free_on_device: int | None
) -> tuple[str, bool, str]:
    """What `--cache_images` and `--augment_on_device` are, and why the first.

    Args:
        device: its type.
        waits: whether it waits for images.
        epochs: how often an image is shown.
        size: of all images, decoded, in bytes.
        free, free_on_device: bytes of main memory, and of the device's own.
    """
    decoded = f"decoded, the images are {_format_bytes(size)}"
    on_gpu = device == "cuda" and waits
    if epochs < _MIN_EPOCHS_TO_CACHE:
        return "no", on_gpu, "an image is hardly shown twice"
    if on_gpu and size <= _MEMORY_SHARE * (free_on_device or 0):
        return "device", False, f"{decoded} of {_format_bytes(free_on_device or 0)} that are free there"
    if size > _MEMORY_SHARE * free:
        return "no", on_gpu, f"{decoded}, too many for {_format_bytes(free)} of free memory"
    return "memory", on_gpu, f"{decoded} of {_format_bytes(free)} that are free"


def _format_bytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def choose_precision(device: torch.device) -> tuple[str, str]:
    """The mixed precision for a device, and why."""
    if device.type != "cuda":
        return "no", f"the device is {'a CPU' if device.type == 'cpu' else device.type}"
    name = torch.cuda.get_device_name(device)
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", f"{name} has it"
    return "fp16", f"{name} has no bf16"


def _compact(value: object) -> str:
    """For a command line, where a space would end an argument."""
    return json.dumps(value, separators=(",", ":"))


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
        with quiet():
            recipe.build_model(overrides, name)
    except Exception as error:  # of whatever library huggingface_hub takes for the network
        return None, f"{name} cannot be had ({str(error).splitlines()[0][:200]})"
    return name, ""
