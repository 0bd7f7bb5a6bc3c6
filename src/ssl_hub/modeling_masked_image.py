"""The bases of the masked-image algorithms: masks, targets that a generator makes, mask tokens."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedImageModelingOutput

from .configuration_utils import MaskedPatchConfig
from .modeling_outputs import (
    PatchPredictionOutput,
    ReconstructionOutput,
    SSLLossOutput,
)
from .modeling_utils import SSLModel, check_floats
from .modules.backbones import explain_failure
from .modules.losses import target_loss, to_float32
from .modules.masking import (
    aligned_patch_mask,
    blockwise_patch_mask,
    check_mask_shape,
    check_patch_mask,
    draw_patches,
    pixel_mask,
    take_patches,
    visible_patch_indices,
)
from .modules.target_config import MaskedTargetConfig
from .modules.target_generators import build_target_generator


class MaskedPatchModel(SSLModel):
    """Base of the algorithms that reconstruct masked patches of an image; `config` says how masks are drawn."""

    config: MaskedPatchConfig
    # How many patches the masks of a training run remove, where the loop knows: the host need not wait for one, then.
    num_masked_patches: int | None = None

    def extract_features(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        *,
        bool_masked_pos: torch.Tensor | None = None,
        target_pixel_values: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling | MaskedImageModelingOutput:
        """Features as of every algorithm; with `bool_masked_pos` what `AutoModelForMaskedImageModeling` stands for.

        That is a `MaskedImageModelingOutput` with the `loss` of `mode="loss"` and the `reconstruction` of `mode="predict"`,
        un-normalised and `(batch_size, num_channels, height, width)`. There is none of targets that cannot be shown, nor in
        training mode, which does without a second pass.
        """
        if bool_masked_pos is None:
            return super().extract_features(pixel_values, output_hidden_states, output_attentions)
        inputs = {"bool_masked_pos": bool_masked_pos}
        if target_pixel_values is not None:
            inputs["target_pixel_values"] = target_pixel_values
        loss = self.loss(pixel_values, **inputs).loss
        reconstruction = None if self.training else self.predict(pixel_values, **inputs).reconstruction
        return MaskedImageModelingOutput(loss=loss, reconstruction=reconstruction)

    def grid_size(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """Rows and columns of patches."""
        self.check_pixel_values(pixel_values)
        (height, width), patch_size = pixel_values.shape[-2:], self.config.patch_size
        if height % patch_size != 0 or width % patch_size != 0:
            raise ValueError(
                f"height and width of the images must be multiples of the patch size {patch_size}; got {height} x {width}"
            )
        return height // patch_size, width // patch_size

    def patch_mask(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None) -> torch.Tensor:
        """The mask `(batch_size, num_patches)` that is given, or one that is drawn."""
        config, (rows, columns) = self.config, self.grid_size(pixel_values)
        batch_size, num_patches = len(pixel_values), rows * columns
        if bool_masked_pos is not None:
            check_mask_shape(bool_masked_pos, batch_size, num_patches)
            return bool_masked_pos.bool()
        num_masked, device = config.num_masked_patches(num_patches), pixel_values.device
        if config.mask_kind == "aligned":
            if rows % config.mask_unit != 0 or columns % config.mask_unit != 0:
                raise ValueError(
                    f"height and width of the images must be multiples of mask_cell_size {config.mask_cell_size}; got "
                    f"{pixel_values.shape[-2]} x {pixel_values.shape[-1]}"
                )
            return aligned_patch_mask(batch_size, rows, columns, num_masked, device, config.mask_unit)
        if config.mask_kind == "blockwise":
            return blockwise_patch_mask(batch_size, rows, columns, num_masked, device)
        return draw_patches(batch_size, num_patches, num_masked, device)

    def split_patches(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The mask `(B, num_patches)`, given or drawn, and the indices of visible `(B, V)` and masked patches `(B, M)`.

        A mask that is given must remove as many patches from every image. The sizes of a compiled graph cannot depend on
        what it holds: unless `num_masked_patches` says otherwise that has to be as many as `config` says.
        """
        mask = self.patch_mask(pixel_values, bool_masked_pos)
        num_patches = mask.shape[1]
        num_masked = self.config.num_masked_patches(num_patches)
        if bool_masked_pos is not None:
            known = self.num_masked_patches if self.training else None
            if known is None and torch.compiler.is_compiling():
                known = num_masked
            num_masked = check_patch_mask(mask, known)
        return mask, visible_patch_indices(mask, num_patches - num_masked), visible_patch_indices(~mask, num_masked)

    def reconstruction_output(
        self, pixel_values: torch.Tensor, prediction: torch.Tensor, mask: torch.Tensor
    ) -> ReconstructionOutput:
        """What `mode="predict"` returns, of normalised pixels `(B, C, H, W)` and a mask of patches."""
        pixel_values, prediction = to_float32(pixel_values), to_float32(prediction)
        mean = pixel_values.new_tensor(self.config.image_mean)[:, None, None]
        std = pixel_values.new_tensor(self.config.image_std)[:, None, None]
        image = pixel_values * std + mean
        masked_pixels = pixel_mask(mask, self.grid_size(pixel_values), self.config.patch_size)
        return ReconstructionOutput(
            reconstruction=prediction * std + mean,
            masked_image=image.masked_fill(masked_pixels, 0.5),
            mask=mask,
        )


class MaskedTargetModel(MaskedPatchModel):
    """Base of the algorithms that predict of masked patches what a target generator makes of them.

    A subclass implements `_predict_patches(pixel_values, bool_masked_pos)`, which returns the mask `(B, num_patches)`, the
    indices of the masked patches `(B, M)`, predictions `(B, M, size)`, and what else its loss needs; or `predict`.
    """

    config: MaskedTargetConfig

    def __init__(self, config: MaskedTargetConfig):
        super().__init__(config)
        self.target_generator = build_target_generator(config, config.patch_size)

    def begin_run(self, num_samples: int | None) -> None:
        self.target_generator.load()

    def masked_targets(
        self, pixel_values: torch.Tensor, target_pixel_values: torch.Tensor | None, masked_patches: torch.Tensor
    ) -> torch.Tensor:
        """Targets of the patches with these indices `(B, M)`: tokens `(B, M)` or vectors `(B, M, size)`."""
        if target_pixel_values is not None:
            check_floats(target_pixel_values, "target_pixel_values")
        targets = self.target_generator(pixel_values, target_pixel_values)
        return take_patches(targets, masked_patches) if targets.ndim == 3 else targets.gather(1, masked_patches)

    @torch.no_grad()
    def predict(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        target_pixel_values: torch.Tensor | None = None,
    ) -> PatchPredictionOutput:
        """`mode="predict"`: what is predicted of the masked patches. Takes what `mode="loss"` takes."""
        mask, masked_patches, prediction, *_ = self._predict_patches(pixel_values, bool_masked_pos)
        target = self.masked_targets(pixel_values, target_pixel_values, masked_patches)
        return self.prediction_output(pixel_values, prediction, target, mask, masked_patches)

    def prediction_output(
        self,
        pixel_values: torch.Tensor,
        prediction: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor,
        masked_patches: torch.Tensor,
    ) -> PatchPredictionOutput:
        """What `mode="predict"` returns, of predictions `(B, M, size)` and their targets, at the indices `(B, M)`."""
        if self.target_generator.is_discrete:
            tokens = prediction.argmax(dim=-1)
            accuracy = (tokens == target).float().mean(dim=1)
            return PatchPredictionOutput(prediction=tokens, target=target, accuracy=accuracy, mask=mask)
        prediction = to_float32(prediction)
        everywhere = prediction.new_zeros(*mask.shape, prediction.shape[2])
        everywhere.scatter_(1, masked_patches[..., None].expand_as(prediction), prediction)
        picture = self.target_generator.render(everywhere, pixel_values)
        if picture is None:
            return PatchPredictionOutput(prediction=prediction, target=target, mask=mask)
        image = self.target_generator.denormalize(pixel_values)
        masked_pixels = pixel_mask(mask, self.grid_size(pixel_values), self.config.patch_size)
        return PatchPredictionOutput(
            reconstruction=torch.where(masked_pixels, picture, image),
            masked_image=image.masked_fill(masked_pixels, 0.5),
            mask=mask,
            prediction=prediction,
            target=target,
        )


class MaskTokenModel(MaskedTargetModel):
    """Base of the algorithms whose `backbone` sees a mask token in the place of a masked patch, and whose `neck` is one
    linear layer.

    A subclass implements `build_backbone`. The backbone takes `bool_masked_pos` and returns a class token first.
    """

    def __init__(self, config: MaskedTargetConfig):
        super().__init__(config)
        with explain_failure(config.backbone_config):
            self.backbone = self.build_backbone(config)
        self.neck = self.build_neck(config)
        self.post_init()

    def build_backbone(self, config: MaskedTargetConfig) -> PreTrainedModel:
        raise NotImplementedError(f"{type(self).__name__} does not implement build_backbone()")

    def build_neck(self, config: MaskedTargetConfig) -> nn.Module:
        return nn.Linear(config.backbone_config.hidden_size, self.target_generator.size)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self.neck:
            init.trunc_normal_(module.weight, std=0.02)
            init.zeros_(module.bias)

    def loss(
        self,
        pixel_values: torch.Tensor,
        *,
        bool_masked_pos: torch.Tensor | None = None,
        target_pixel_values: torch.Tensor | None = None,
    ) -> SSLLossOutput:
        """`mode="loss"`: the error of what is predicted of the masked patches.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`, *optional*):
                `True` where a patch is masked, as many in every image (as `config` says, if the model is compiled);
                drawn as `config` says when not given.
            target_pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, target_height, target_width)`, *optional*):
                The same crops, of the size and normalised as the target generator takes them. Made from `pixel_values`
                when not given.
        """
        _, masked_patches, prediction = self._predict_patches(pixel_values, bool_masked_pos)
        loss = target_loss(prediction, self.masked_targets(pixel_values, target_pixel_values, masked_patches))
        return SSLLossOutput(loss=loss, losses={"main": loss.detach()})

    def _predict_patches(self, pixel_values, bool_masked_pos):
        mask, _, masked_patches = self.split_patches(pixel_values, bool_masked_pos)
        images = pixel_values.to(self.backbone.dtype)
        tokens = self.backbone(images, bool_masked_pos=mask, interpolate_pos_encoding=True).last_hidden_state
        return mask, masked_patches, self.predict_targets(tokens, masked_patches)

    def predict_targets(self, tokens: torch.Tensor, masked_patches: torch.Tensor) -> torch.Tensor:
        """From the backbone's last tokens `(B, 1 + num_patches, D)` to predictions `(B, M, size)`."""
        return self.neck(take_patches(tokens[:, 1:], masked_patches))
