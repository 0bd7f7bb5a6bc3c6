import math

import pytest
import torch
from test_modeling_common import SSLModelTests
from transformers import AutoModel, SwinForMaskedImageModeling, SwinModel, ViTForMaskedImageModeling, ViTModel

from ssl_hub import SimMIMConfig, SimMIMForImageClassification, SimMIMModel
from ssl_hub.conversion.sources import load_foreign_checkpoint
from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.training.arguments import PretrainingArguments
from ssl_hub.training.optimization import parameter_groups
from ssl_hub.training.trainer import SSLTrainer

SWIN = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
VIT = {
    "model_type": "vit",
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


class TestSimMIM(SSLModelTests):
    config_class, model_class, classifier_class = SimMIMConfig, SimMIMModel, SimMIMForImageClassification
    backbone = SWIN

    @classmethod
    def config(cls, **overrides):
        return SimMIMConfig(**{"backbone_config": dict(cls.backbone), "mask_cell_size": 4, **overrides})

    @classmethod
    def loss_inputs(cls, batch_size):
        side = 16 // cls.backbone["patch_size"]
        index = 7 * torch.arange(side**2) + 3 * torch.arange(batch_size)[:, None]
        return {"bool_masked_pos": index % side**2 < 0.6 * side**2}  # as many in every image

    def test_features_see_no_mask_at_any_size(self):
        model = self.model().eval()
        for height, width in ((16, 16), (8, 8), (32, 32), (24, 40)):
            images = torch.randn(2, 3, height, width)
            outputs = model(images)
            assert outputs.pooler_output.shape == (2, 32)
            assert torch.equal(outputs.last_hidden_state, model(images).last_hidden_state)

    def test_masked_pixels_are_neither_seen_nor_is_the_visible_error_counted(self):
        model = self.model().eval()
        images, mask = self.one_view(), self.loss_inputs(8)["bool_masked_pos"]
        patch_size = model.config.patch_size
        side = 16 // patch_size
        masked_pixels = mask.view(8, 1, side, side).repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)
        changed = torch.where(masked_pixels, torch.randn_like(images), images)
        first = model(images, mode="predict", bool_masked_pos=mask)
        second = model(changed, mode="predict", bool_masked_pos=mask)
        assert torch.equal(first.reconstruction, second.reconstruction)
        prediction, _ = model._reconstruct(images, mask)
        expected = (prediction - images).abs()[masked_pixels.expand_as(images)].mean().item()
        assert model(images, mode="loss", bool_masked_pos=mask).loss.item() == pytest.approx(expected, rel=1e-5)

    def test_prediction_is_in_pixels(self):
        model = self.model(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]).eval()
        image = torch.rand(2, 3, 16, 16)
        mean, std = (torch.tensor(x)[:, None, None] for x in (model.config.image_mean, model.config.image_std))
        model.neck.forward = lambda features: (image - mean) / std
        outputs = model((image - mean) / std, mode="predict")
        torch.testing.assert_close(outputs.reconstruction, image)
        side = 16 // model.config.patch_size
        masked = outputs.mask.view(2, side, side).repeat_interleave(16 // side, 1).repeat_interleave(16 // side, 2)
        torch.testing.assert_close(outputs.masked_image, torch.where(masked[:, None], 0.5, image))

    def test_masks_that_are_drawn(self):
        """Six tenths of the cells, rounded up, and a cell as a whole."""
        model = self.model(mask_cell_size=8 if self.backbone is SWIN else 4).eval()
        mask = model(self.one_view(), mode="predict").mask
        side = 16 // model.config.patch_size
        cells = mask.view(8, side, side)
        unit = model.config.mask_unit
        cells = cells.unfold(1, unit, unit).unfold(2, unit, unit).flatten(3)
        assert (cells.all(dim=3) == cells.any(dim=3)).all()
        count = math.ceil(0.6 * cells[0, ..., 0].numel())
        assert (cells[..., 0].sum(dim=(1, 2)) == count).all()
        assert len(torch.cat([model(self.one_view(), mode="predict").mask for _ in range(10)]).unique(dim=0)) > 3

    def test_eager_equals_sdpa(self):
        model = self.model().eval()
        assert model.config._attn_implementation == "sdpa"
        sdpa = model(self.one_view(), mode="loss", **self.loss_inputs(8)).loss.item()
        model.set_attn_implementation("eager")
        eager = model(self.one_view(), mode="loss", **self.loss_inputs(8)).loss.item()
        assert sdpa == pytest.approx(eager, rel=1e-6)
        assert len(model(self.one_view(), output_attentions=True).attentions) == 2

    def test_bf16_weights(self):
        model = self.model().to(torch.bfloat16)
        outputs = model(self.one_view().bfloat16(), mode="loss")
        outputs.loss.backward()
        assert torch.isfinite(outputs.loss)

    def test_trains_at_another_size(self):
        model = self.model().train()
        outputs = model(torch.randn(2, 3, 24, 32), mode="loss")
        outputs.loss.backward()
        assert torch.isfinite(outputs.loss)
        assert model(torch.randn(2, 3, 24, 32), mode="predict").reconstruction.shape == (2, 3, 24, 32)

    def test_initialisation_is_that_of_the_paper(self):
        model = self.model()
        for name, parameter in model.backbone.named_parameters():
            if parameter.ndim > 1 and parameter.numel() > 30 and "projection" not in name:
                assert parameter.std().item() == pytest.approx(0.02, rel=0.5), name
                assert parameter.mean().abs() < 0.01
        for convolution in (model.backbone.embeddings.patch_embeddings.projection, model.neck.predict_pixels):
            bound = convolution.weight[0].numel() ** -0.5
            assert 0.9 * bound < convolution.weight.abs().max() <= bound

    def test_what_is_free_of_weight_decay(self):
        model = self.model()
        names = {parameter: name for name, parameter in model.named_parameters()}
        groups = parameter_groups(model, PretrainingArguments("out", weight_decay=0.05), 1e-3)
        decayed = {names[p] for group in groups if group["weight_decay"] > 0 for p in group["params"]}
        others = set(names.values()) - decayed
        assert {name for name in names.values() if name.endswith(("_token", "bias", "_table"))} <= others
        assert "backbone.embeddings.patch_embeddings.projection.weight" in decayed
        assert all(name.endswith("weight") and "norm" not in name for name in decayed)

    @pytest.mark.parametrize("mask_ratio", [0.0, 1.0, -0.5, 1.5, 0.99])
    def test_mask_ratio_outside_its_range(self, mask_ratio):
        with pytest.raises(ValueError, match=rf"mask_ratio must .* got {mask_ratio}"):
            self.config(mask_ratio=mask_ratio)

    def test_masks_and_images_that_cannot_work(self):
        model, images = self.model(), self.one_view(2)
        num_patches = (16 // model.config.patch_size) ** 2
        with pytest.raises(ValueError, match=rf"shape \(2, {num_patches}\), one entry a patch; got \(2, 9\)"):
            model(images, mode="loss", bool_masked_pos=torch.ones(2, 9, dtype=torch.bool))
        with pytest.raises(ValueError, match=rf"multiples of the patch size {model.config.patch_size}; got 17 x 16"):
            model(torch.zeros(2, 3, 17, 16), mode="predict")


def padded_model():
    """With windows as large as the first feature map and larger than the second."""
    torch.manual_seed(0)
    config = SimMIMConfig(backbone_config={**SWIN, "window_size": 8}, mask_cell_size=4, pad_small_maps=True)
    return SimMIMModel(config)


def test_padded_maps_are_transformers_with_always_partition(tmp_path):
    model, images = padded_model().eval(), torch.randn(2, 3, 16, 16)
    model.backbone.save_pretrained(tmp_path)
    plain = AutoModel.from_pretrained(tmp_path).eval()
    assert type(plain) is SwinModel
    expected = model(images).last_hidden_state
    assert torch.equal(plain(images, always_partition=True).last_hidden_state, expected)
    with pytest.raises(RuntimeError, match="must match"):  # what transformers makes of such windows otherwise
        plain(images)


def test_padded_maps_train_and_are_saved(tmp_path):
    model, images = padded_model().train(), torch.randn(2, 3, 16, 16)
    model(images, mode="loss").loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(images).pooler_output, model.eval()(images).pooler_output)


def test_defaults_are_the_paper():
    config = SimMIMConfig()
    assert (config.mask_kind, config.mask_ratio, config.mask_cell_size) == ("aligned", 0.6, 32)
    assert config.num_masked_patches(48 * 48) == 22 * 64
    backbone = config.backbone_config
    assert (config.image_size, backbone.window_size, config.encoder_stride) == (192, 6, 32)
    assert (backbone.embed_dim, list(backbone.depths), backbone.drop_path_rate) == (128, [2, 2, 18, 2], 0.0)
    assert (backbone.hidden_size, backbone.encoder_stride) == (1024, 32)
    with torch.device("meta"):
        num_parameters = sum(p.numel() for p in SimMIMModel(config).parameters())
        swin = SwinForMaskedImageModeling(backbone)
    assert num_parameters == sum(p.numel() for p in swin.parameters())


def test_features_do_not_depend_on_earlier_images():
    """transformers' own Swin forgets for good to shift the windows that once were as large as their map."""
    torch.manual_seed(0)
    model = SimMIMModel(SimMIMConfig(backbone_config=SWIN, mask_cell_size=4)).eval()
    images = torch.randn(2, 3, 32, 32)
    fresh = SwinModel(model.config.backbone_config, use_mask_token=True).eval()
    fresh.load_state_dict(model.backbone.state_dict())
    model(torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(model(images).last_hidden_state, fresh(images).last_hidden_state)


def test_images_that_cannot_work():
    model = SimMIMModel(SimMIMConfig(backbone_config=SWIN, mask_cell_size=8))
    with pytest.raises(ValueError, match=r"multiples of mask_cell_size 8; got 20 x 16"):
        model(torch.zeros(2, 3, 20, 16), mode="loss")
    mask = torch.arange(9 * 8).expand(2, -1) % 2 == 0
    with pytest.raises(ValueError, match=r"multiples of 4, the stride .* got 18 x 16"):
        model(torch.zeros(2, 3, 18, 16), mode="loss", bool_masked_pos=mask)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 18}, r"image_size must be a multiple of 4, the stride .* got 18"),
        ({"image_size": 15}, r"sides? the patch size divides.* got 15 and 2"),
        ({"mask_cell_size": 3}, r"mask_cell_size must be a multiple of the patch size 2 and divide .* 16; got 3"),
        ({"mask_cell_size": 32}, r"mask_cell_size must .* divide the image size 16; got 32"),
        ({"mask_cell_size": 0}, "mask_cell_size must be a whole number of at least 1, got 0"),
        ({"mask_cell_size": 16}, r"mask at least one of the 1 cells"),
        ({"backbone_config": {**SWIN, "window_size": 8}}, r"windows of 8 are larger than .* 4 x 4: .*pad_small_maps"),
        ({"backbone_config": {"model_type": "resnet"}}, r"must be 'swin' or 'vit'; got 'resnet'"),
        ({"backbone_config": {**VIT, "patch_size": [4, 4]}}, r"SimMIM needs square images .* got 16 and \[4, 4\]"),
        ({"backbone_config": VIT, "pad_small_maps": True}, r"pad_small_maps is for a Swin"),
    ],
)
def test_configurations_that_cannot_work(fields, message):
    kind = {"mask_kind": "random"} if "image_size" in fields else {"mask_cell_size": 4}
    with pytest.raises(ValueError, match=message):
        SimMIMConfig(**{"backbone_config": SWIN, **kind, **fields})


@pytest.mark.parametrize(
    ("backbone", "model_class"), [(SWIN, SwinForMaskedImageModeling), (VIT, ViTForMaskedImageModeling)]
)
def test_transformers_model_converts_and_has_the_same_loss(tmp_path, backbone, model_class):
    torch.manual_seed(0)
    config = SimMIMConfig(backbone_config=dict(backbone), mask_cell_size=4)
    theirs = model_class(config.backbone_config).eval()
    for parameter in theirs.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1
    theirs.save_pretrained(tmp_path)
    ours = SimMIMModel(config).eval()
    load_foreign_checkpoint(ours, tmp_path, "transformers")
    images, mask = torch.randn(3, 3, 16, 16), torch.rand(3, (16 // backbone["patch_size"]) ** 2) < 0.6
    expected = theirs(images, bool_masked_pos=mask)
    assert ours(images, mode="loss", bool_masked_pos=mask).loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    prediction, _ = ours._reconstruct(images, mask)
    torch.testing.assert_close(prediction, expected.reconstruction)


def test_masks_of_a_view_reach_the_loss(tmp_path):
    """Through the trainer, and that the masks it makes are those that the model draws."""
    config = SimMIMConfig(backbone_config=SWIN, mask_cell_size=4)
    args = PretrainingArguments(str(tmp_path), max_train_steps=2, per_device_train_batch_size=8, learning_rate=1e-3)
    views = [{"size": 16, "mask": {"kind": "aligned", "ratio": 0.6, "cell": 4, "patch": 2}}]
    trainer = SSLTrainer(SimMIMModel(config), args, load_image_dataset("digits"), views)
    masks = []
    trainer.model.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs.get("bool_masked_pos")), with_kwargs=True
    )
    trainer.train()
    masks = [mask for mask in masks if mask is not None]  # the evaluation has none
    drawn = trainer.model.patch_mask(torch.zeros(8, 3, 16, 16), None)
    for mask in (*masks[:2], drawn):
        cells = mask.view(8, 4, 2, 4, 2).transpose(2, 3).flatten(3).float().mean(dim=3)
        assert cells.unique().tolist() == [0, 1] and (cells.sum(dim=(1, 2)) == 10).all()
    assert (tmp_path / "reconstruction.png").exists()


def test_backbone_as_a_plain_vit(tmp_path):
    model = SimMIMModel(SimMIMConfig(backbone_config=VIT, mask_cell_size=4)).eval()
    model.backbone.save_pretrained(tmp_path)
    plain = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert plain.config.architectures == ["ViTModel"]
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(plain(images).last_hidden_state, model(images).last_hidden_state)
