"""transformers' `Trainer`, with the optimizers, schedules and mixed labels that classifiers are published with."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from timm.data import Mixup
from timm.data.transforms_factory import transforms_imagenet_train
from torch.nn import functional
from torchvision.transforms import Normalize
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import get_last_checkpoint

from ..distributed import num_processes, synchronize_batchnorm
from ..modeling_utils import SSLForImageClassification
from .arguments import Arguments, AugmentationArguments, ClassifierTrainingArguments
from .data import IGNORED_LABEL, AugmentedImages, EvaluationImages
from .models import load_images_and_classifier
from .optimization import build_optimizer, decayed_names, milestone_schedule, parameter_groups

# The second word of the entropy that Mixup and CutMix are seeded with.
_MIXING_STREAM = int.from_bytes(b"mixu", "big")

# The principal components of ImageNet's colors, by column, and their eigenvalues in units where 255 is white.
_COLOR_COMPONENTS = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
_COLOR_VARIANCES = torch.tensor([55.4625, 4.7940, 1.1475])


def build_trainer(arguments: Arguments, freeze_backbone: bool) -> "ClassifierTrainer":
    """Loads images and model, and puts the trainer together.

    Args:
        freeze_backbone: for a linear evaluation.

    Raises:
        ValueError, OSError: see [`load_images_and_classifier`].
    """
    _, augmentation, _, args = arguments
    train_images, test_images, model, processor = load_images_and_classifier(arguments, freeze_backbone)
    config = model.config
    transform = build_transform(augmentation, config.image_size, config.image_mean, config.image_std)
    return ClassifierTrainer(
        model,
        args,
        augmentation,
        train_dataset=AugmentedImages(train_images, transform, args.seed),
        eval_dataset=EvaluationImages(test_images, processor),
        processing_class=processor,
    )


def run_trainer(trainer: "ClassifierTrainer") -> dict[str, float]:
    """Trains and tests; `output_dir` gets the model with its image processor, and `all_results.json`."""
    resume = trainer.args.resume_from_checkpoint
    if resume == "latest":
        resume = get_last_checkpoint(trainer.args.output_dir) if Path(trainer.args.output_dir).is_dir() else None
    result = trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    trainer.save_metrics("train", result.metrics)
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    trainer.save_state()
    if trainer.is_world_process_zero():
        accuracies = {name.removeprefix("eval_"): value for name, value in metrics.items() if "accuracy" in name}
        print(", ".join(f"{name} {value:.2%}" for name, value in accuracies.items()))
    return metrics


def build_transform(augmentation: AugmentationArguments, image_size: int, mean, std):
    """timm's training transform: RGB image to normalised `(3, image_size, image_size)`."""
    try:
        transform = transforms_imagenet_train(
            image_size,
            scale=(augmentation.crop_scale_min, 1.0),
            hflip=augmentation.hflip,
            color_jitter=augmentation.color_jitter or None,
            force_color_jitter=True,  # beside RandAugment too
            auto_augment=augmentation.auto_augment,
            interpolation=augmentation.interpolation,
            re_prob=augmentation.random_erasing,
            re_mode="pixel",
            mean=tuple(mean),
            std=tuple(std),
        )
    # timm asserts and looks up, and says nothing else of a policy that it does not know.
    except (AssertionError, KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"timm does not know the augmentation {augmentation.auto_augment!r}: --auto_augment is such as "
            "rand-m9-mstd0.5-inc1, original or v0"
        ) from error
    if augmentation.lighting:
        normalize = next(i for i, step in enumerate(transform.transforms) if isinstance(step, Normalize))
        transform.transforms.insert(normalize, partial(_change_lighting, std=augmentation.lighting))
    # At its full strength timm asks for 0 bits a color, which recent versions of Pillow refuse.
    for step in transform.transforms:
        for operation in getattr(step, "ops", ()):
            if operation.name.startswith("Posterize"):
                operation.level_fn = partial(_at_least_one_bit, operation.level_fn)
    return transform


def _change_lighting(pixels: torch.Tensor, std: float) -> torch.Tensor:
    """Moves all pixels `(3, H, W)`, from 0 to 1, along the principal components of ImageNet's colors, as AlexNet did."""
    amounts = _COLOR_VARIANCES / 255 * torch.randn(3) * std
    return pixels + (_COLOR_COMPONENTS @ amounts)[:, None, None]


def _at_least_one_bit(level_fn: Callable, *arguments) -> tuple[int]:
    return (max(1, level_fn(*arguments)[0]),)


class ClassifierTrainer(Trainer):
    """Trains an image classifier; of a frozen one the classifier alone.

    `--label_smoothing_factor` of `TrainingArguments` is that of the mixed labels too.

    Args:
        model: see [`load_classifier`].
        options: of transformers' `Trainer`.
    """

    def __init__(
        self,
        model: SSLForImageClassification,
        args: ClassifierTrainingArguments,
        augmentation: AugmentationArguments,
        **options,
    ):
        if args.learning_rate is None:
            images = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            args.learning_rate = args.base_learning_rate * images / 256
        if num_processes() > 1:
            model = synchronize_batchnorm(model, args.device)
        super().__init__(
            model,
            args,
            compute_metrics=partial(_accuracies, stages=model.config.classifier_stages),
            preprocess_logits_for_metrics=_ranks,
            **options,
        )
        self.model_accepts_loss_kwargs = False  # the loss is the mean over a batch, whatever is accumulated
        self.mixup = None
        if augmentation.mixup or augmentation.cutmix:
            if args.train_batch_size % 2:
                raise ValueError(
                    "Mixup and CutMix mix pairs of images, so the images a process and step must be an even number; got "
                    f"{args.train_batch_size}"
                )
            args.dataloader_drop_last = True
        images = args.train_batch_size * args.world_size
        if args.dataloader_drop_last and len(self.train_dataset) < images:
            raise ValueError(
                f"there are {len(self.train_dataset)} training images, fewer than the {images} of a batch (of all "
                "processes), and an incomplete batch is dropped: make --per_device_train_batch_size smaller"
            )
        if augmentation.mixup or augmentation.cutmix:
            self.mixup = Mixup(
                augmentation.mixup,
                augmentation.cutmix,
                label_smoothing=args.label_smoothing_factor,
                num_classes=model.config.num_labels,
            )

    def get_decay_parameter_names(self, model) -> list[str]:
        return decayed_names(model)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        args, model = self.args, self.model if model is None else model
        own_groups = args.layer_decay is not None or args.head_lr_scale != 1 or args.decay_norm_and_bias
        if self.optimizer is not None or not (own_groups or args.optimizer):
            return super().create_optimizer(model)
        groups = parameter_groups(
            model,
            args.learning_rate,
            args.weight_decay,
            layer_decay=args.layer_decay,
            head_lr_scale=args.head_lr_scale,
            decay_norm_and_bias=args.decay_norm_and_bias,
        )
        if args.optimizer is not None:
            self.optimizer = build_optimizer(args.optimizer, groups, args.learning_rate, args.momentum, args.nesterov)
        else:
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(args, model)
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.lr_scheduler is None and self.args.lr_milestones is not None:
            batch_size = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
            steps_per_epoch = len(self.train_dataset) / batch_size
            self.lr_scheduler = milestone_schedule(
                optimizer or self.optimizer,
                [round(epoch * steps_per_epoch) for epoch in self.args.lr_milestones],
                self.args.lr_milestone_factor,
                self.args.get_warmup_steps(num_training_steps),
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        pixel_values, labels = inputs["pixel_values"], inputs["labels"]
        smoothing = 0.0
        if model.training:
            smoothing = self.args.label_smoothing_factor
            if self.mixup is not None:
                pixel_values, labels = self._mix(pixel_values, labels)
                smoothing = 0.0
        outputs = model(pixel_values)
        logits = outputs.logits.float()
        # of a classifier of stages the sum over them
        parts = [logits] if logits.ndim == 2 else logits.unbind(dim=1)
        loss = sum(
            functional.cross_entropy(part, labels, label_smoothing=smoothing, ignore_index=IGNORED_LABEL)
            for part in parts
        )
        return (loss, {"loss": loss, "logits": outputs.logits}) if return_outputs else loss

    def get_eval_dataloader(self, eval_dataset=None):
        """Of all images: transformers would drop an incomplete batch of the test where one of the training is."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """Loads by `from_pretrained`: a file has the names of transformers 4, and the base class, which goes by those of
        the model, would pass over what it does not find and train on with what the run began with."""
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            model = self.accelerator.unwrap_model(self.model if model is None else model)
            model.load_state_dict(type(model).from_pretrained(resume_from_checkpoint).state_dict())

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _mix(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixes pairs of a batch, by draws from (seed, step, process) so that a resumed run makes the same ones."""
        state = np.random.get_state()
        entropy = [self.args.seed, _MIXING_STREAM, self.state.global_step, self.args.process_index]
        try:
            np.random.seed(np.random.SeedSequence(entropy).generate_state(1)[0])
            return self.mixup(pixel_values.clone(), labels)
        finally:
            np.random.set_state(state)


def _ranks(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many other classes get no lower score than the right one: `(B,)`, or `(B, num_stages)`; NaN is never right."""
    known = labels.clamp(min=0)
    known = known[:, None] if logits.ndim == 2 else known[:, None, None].expand(*logits.shape[:2], 1)
    return logits.shape[-1] - 1 - (logits < logits.gather(-1, known)).sum(dim=-1)


def _accuracies(prediction: EvalPrediction, stages: Sequence[int] | None = None) -> dict[str, float]:
    """Top-1 and top-5 accuracy from 0 to 1; of a classifier of stages those of each."""
    ranks = np.asarray(prediction.predictions)[np.asarray(prediction.label_ids) != IGNORED_LABEL]
    parts = {"": ranks} if stages is None else {f"_stage{stage}": ranks[:, i] for i, stage in enumerate(stages)}
    return {
        f"{metric}{name}": float((part < k).mean())
        for name, part in parts.items()
        for metric, k in (("accuracy", 1), ("top5_accuracy", 5))
    }
