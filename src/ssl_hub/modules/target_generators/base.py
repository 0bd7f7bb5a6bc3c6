"""The base of the target generators, and what those with a network share."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ...field_types import PositiveFloat, PositiveInt
from ..losses import to_float32


class TargetGenerator:
    """Makes the targets of all patches of a batch, without gradient, in float32.

    Args:
        config: a `MaskedTargetConfig`; `config.target_options` are the generator's own.
        patch_size: side of the model's patches, in pixels.
    """

    # The names and types of its `target_options`.
    options: ClassVar[dict[str, Any]] = {}
    # Whether a target is the number of a token of a vocabulary, not a vector.
    is_discrete: ClassVar[bool] = False
    # Values of a target, or words of the vocabulary.
    size: int

    def __init__(self, config, patch_size: int):
        self.type = config.target_type
        self.patch_size = patch_size
        self.num_channels = config.num_channels
        self.image_mean, self.image_std = config.image_mean, config.image_std

    def load(self) -> None:
        """Loads what the targets are made with, so that a run fails at its start or not at all."""

    def __call__(self, pixel_values: torch.Tensor, target_pixel_values: torch.Tensor | None = None) -> torch.Tensor:
        """Makes targets.

        Args:
            pixel_values: the model's normalised images `(B, C, H, W)`.
            target_pixel_values: the same crops as the generator is to see them, normalised for it, if a view makes
                them; otherwise they are made from `pixel_values`. Generators without a network do not take them.

        Returns:
            `torch.FloatTensor` of shape `(B, num_patches, size)`, or `torch.LongTensor` of shape `(B, num_patches)` if
            they are discrete; patches row by row.
        """
        raise NotImplementedError

    def render(self, targets: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor | None:
        """Pictures `(B, C, H, W)`, with values around [0, 1], of targets `(B, num_patches, size)` of these images; None
        for targets that cannot be shown, such as tokens."""
        return None

    def grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """The model's rows and columns of patches."""
        return pixel_values.shape[-2] // self.patch_size, pixel_values.shape[-1] // self.patch_size

    def denormalize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The model's images with values in [0, 1]."""
        mean, std = _by_channel(self.image_mean, pixel_values), _by_channel(self.image_std, pixel_values)
        return to_float32(pixel_values) * std + mean


class NetworkTargets(TargetGenerator):
    """Base of the generators with a frozen network.

    `config.target_name_or_path` is the network's folder or Hub id. With `config.target_random` it is drawn at random
    instead, always the same, with `target_options["network"]` as its configuration: for tests.

    `target_options`:
        * size: values of a target, or words of the vocabulary.
        * image_size: side that images are resized to for the network when no view makes `target_pixel_values`. By
          default that which gives a target a patch.
        * image_mean, image_std: what they are normalised with.
        * network: fields of the configuration of a random network.
    """

    options: ClassVar[dict[str, Any]] = {
        "size": PositiveInt,
        "image_size": PositiveInt,
        "image_mean": list[float] | tuple[float, ...],
        "image_std": list[PositiveFloat] | tuple[PositiveFloat, ...],
        "network": dict,
    }
    default_size: ClassVar[int | None] = None
    default_mean: ClassVar[tuple[float, ...]]
    default_std: ClassVar[tuple[float, ...]]

    def __init__(self, config, patch_size: int):
        super().__init__(config, patch_size)
        options = config.target_options
        self.size = options.get("size", self.default_size)
        if self.size is None:
            raise ValueError(
                f"target_options of {self.type!r} need a size, the number of values that its network gives a patch"
            )
        self.image_size = options.get("image_size")
        self.mean, self.std = (
            options.get(f"image_{name}", getattr(self, f"default_{name}")) for name in ("mean", "std")
        )
        self.name_or_path = config.target_name_or_path
        self.random, self.network_fields = config.target_random, options.get("network", {})
        self._network: PreTrainedModel | None = None

    def build_network(self, fields: dict) -> PreTrainedModel:
        """The network with random weights."""
        raise NotImplementedError

    def load_network(self, name_or_path: str) -> tuple[PreTrainedModel, dict]:
        """The network with its weights, and what transformers says of the loading."""
        raise NotImplementedError

    def compute(self, network: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
        """Targets in the network's own grid: ids `(B, h, w)` or values `(B, h, w, size)`."""
        raise NotImplementedError

    def default_image_size(self, network: PreTrainedModel, num_patches: int) -> int:
        """Side of the images of which the network gives so many patches a side."""
        raise NotImplementedError

    @torch.compiler.disable
    def load(self) -> None:
        if self._network is not None:
            return
        if self.random:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # every process has the same
                network = self.build_network(self.network_fields)
        elif self.name_or_path is None:
            raise ValueError(
                f"targets of the type {self.type!r} need a network: set target_name_or_path to its folder or its Hub id"
            )
        else:
            network = self._load_pretrained()
        self.use(network)

    def use(self, network: PreTrainedModel) -> None:
        """Makes targets with this network, which is frozen for that."""
        if self.is_discrete:
            self._check_size(network.config.vocab_size)
        self._network = network.float().eval().requires_grad_(False)

    def _load_pretrained(self) -> PreTrainedModel:
        try:
            network, info = self.load_network(self.name_or_path)
        except OSError as error:
            raise OSError(
                f"the network that makes targets of the type {self.type!r}, {self.name_or_path}, is no folder with a "
                f"model here and cannot be had from the Hub. Where there is a network, `hf download {self.name_or_path} "
                "--local-dir FOLDER` gets it; copy that folder here and set target_name_or_path to it, such as with "
                "--config_overrides target_name_or_path=FOLDER."
            ) from error
        if info["missing_keys"]:
            raise ValueError(
                f"{self.name_or_path} lacks {len(info['missing_keys'])} tensors of a {type(network).__name__}, which "
                f"would be random: {', '.join(sorted(info['missing_keys'])[:3])}, ... Is it a checkpoint of that model?"
            )
        return network

    def _check_size(self, size: int) -> None:
        if size != self.size:
            raise ValueError(
                f"the model predicts {self.size} values a patch, and its {self.type!r} target generator makes {size}: "
                "set the size in target_options"
            )

    def network(self, device: torch.device) -> PreTrainedModel:
        """The network, on that device."""
        if self._network is None:
            self.load()
        if next(self._network.parameters()).device != device:
            self._network.to(device)
        return self._network

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor, target_pixel_values: torch.Tensor | None = None) -> torch.Tensor:
        network, (rows, columns) = self.network(pixel_values.device), self.grid(pixel_values)
        with torch.autocast(pixel_values.device.type, enabled=False):
            if target_pixel_values is None:
                target_pixel_values = self.resize(network, pixel_values)
            targets = self.compute(network, target_pixel_values.float())
        if targets.shape[1:3] != (rows, columns):
            raise ValueError(
                f"the {self.type!r} target generator makes {targets.shape[1]} x {targets.shape[2]} targets of images of "
                f"{target_pixel_values.shape[-2]} x {target_pixel_values.shape[-1]} pixels, and the model has {rows} x "
                f"{columns} patches: change the size of the view's target, or the model's image or patch size"
            )
        if not self.is_discrete:
            self._check_size(targets.shape[3])
        return targets.flatten(1, 2)

    def resize(self, network: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
        """The model's images as the network takes them."""
        sizes = [self.image_size or self.default_image_size(network, patches) for patches in self.grid(pixel_values)]
        images = self.denormalize(pixel_values)
        if images.shape[-2:] != tuple(sizes):
            images = F.interpolate(images, sizes, mode="bilinear", antialias=True, align_corners=False)
        return normalize(images, self.mean, self.std)


def normalize(images: torch.Tensor, mean, std) -> torch.Tensor:
    """Images with values in [0, 1] as a network takes them."""
    return (images - _by_channel(mean, images)) / _by_channel(std, images)


def _by_channel(values, like: torch.Tensor) -> torch.Tensor:
    # Filled on the device: for a list from the host, it would wait.
    return torch.stack([torch.full((), float(value), device=like.device) for value in values])[:, None, None]
