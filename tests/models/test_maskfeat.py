import pytest
import torch
from safetensors.torch import load_file
from test_modeling_common import BATCH_SIZE, SSLModelTests
from transformers import ViTModel

from ssl_hub import MaskFeatConfig, MaskFeatForImageClassification, MaskFeatModel
from ssl_hub.conversion.mmselfsup import convert_config, convert_state_dict
from ssl_hub.conversion.state_dicts import load_strictly

TINY = {
    "backbone_config": {
        "image_size": 16,
        "patch_size": 4,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    },
    "mask_ratio": 0.3,
    "target_options": {"cell_size": 2, "gaussian_window": 8},
}


class TestMaskFeat(SSLModelTests):
    config_class, model_class, classifier_class = MaskFeatConfig, MaskFeatModel, MaskFeatForImageClassification
    loss_ratio = 0.95

    @classmethod
    def config(cls, **overrides):
        return MaskFeatConfig(**{**TINY, **overrides})

    @classmethod
    def loss_inputs(cls, batch_size):
        mask = torch.zeros(batch_size, 16, dtype=torch.bool)
        for row in range(batch_size):
            mask[row, [(row + shift) % 16 for shift in (0, 3, 4, 7, 12)]] = True
        return {"bool_masked_pos": mask}

    def test_defaults_are_the_paper(self):
        config = MaskFeatConfig()
        assert (config.mask_kind, config.num_masked_patches(196), config.target_type) == ("blockwise", 78, "hog")
        with torch.device("meta"):
            model = MaskFeatModel(config)
        assert (model.neck.in_features, model.neck.out_features) == (768, 108)

    def test_loss_is_the_error_at_the_masked_patches(self):
        model, inputs = self.model().eval(), self.loss_inputs(BATCH_SIZE)
        images, mask = self.one_view(), inputs["bool_masked_pos"]
        tokens = model.backbone(images, bool_masked_pos=mask).last_hidden_state[:, 1:]
        targets = model.target_generator(images)
        expected = (model.neck(tokens) - targets).square().mean(dim=-1)[mask].mean()
        outputs = model(images, mode="loss", **inputs)
        assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-5)
        prediction = model(images, mode="predict", **inputs)
        assert torch.equal(prediction.target, targets[mask].unflatten(0, (BATCH_SIZE, 5)))

    def test_masked_patches_are_not_seen(self):
        model, inputs, images = self.model().eval(), self.loss_inputs(BATCH_SIZE), self.one_view()
        hidden = inputs["bool_masked_pos"].reshape(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
        changed = torch.where(hidden, torch.randn_like(images), images)
        predictions = [model(x, mode="predict", **inputs).prediction for x in (images, changed)]
        assert torch.equal(*predictions)

    def test_prediction_is_drawn_in_the_place_of_the_masked_patches(self):
        model, inputs = self.model().eval(), self.loss_inputs(BATCH_SIZE)
        outputs = model(self.one_view(), mode="predict", **inputs)
        hidden = inputs["bool_masked_pos"].reshape(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
        image = model.target_generator.denormalize(self.one_view())
        assert torch.equal(torch.where(hidden, 0.0, outputs.reconstruction), torch.where(hidden, 0.0, image))
        assert torch.equal(outputs.masked_image, image.masked_fill(hidden, 0.5))

    def test_images_of_another_size(self):
        outputs = self.model()(torch.randn(2, 3, 24, 32), mode="predict")
        assert outputs.mask.shape == (2, 48) and outputs.prediction.shape == (2, 15, 108)

    def test_backbone_as_plain_vit(self, tmp_path):
        model = self.model().eval()
        model.backbone.save_pretrained(tmp_path)
        plain = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
        assert torch.equal(plain(self.one_view()).last_hidden_state, model(self.one_view()).last_hidden_state)
        assert "embeddings.cls_token" in load_file(tmp_path / "model.safetensors")

    def test_checkpoint_of_mmselfsup(self):
        """Names by hand: no reference case has them."""
        backbone = {"arch": {"embed_dims": 32, "num_layers": 2, "num_heads": 4, "feedforward_channels": 64}}
        backbone |= {"type": "MaskFeatViT", "img_size": 16, "patch_size": 4}
        generator = {"type": "HOGGenerator", "nbins": 9, "pool": 2, "gaussian_window": 8}
        neck = {"type": "LinearNeck", "in_channels": 32, "out_channels": 108}
        config = convert_config(
            {"type": "MaskFeat", "backbone": backbone, "neck": neck, "head": {}, "target_generator": generator}
        )
        model = MaskFeatModel(config)
        ours = {"cls_token": "cls_token", "pos_embed": "position_embeddings", "mask_token": "mask_token"}
        state = model.state_dict()
        theirs = {f"backbone.{name}": state[f"backbone.embeddings.{own}"] for name, own in ours.items()}
        theirs |= {f"neck.fc.{name}": state[f"neck.{name}"] for name in ("weight", "bias")}
        names = [key for key in state if ".layers." in key or "layernorm" in key or "projection" in key]
        rest = {key: state[key] for key in names}
        load_strictly(model, convert_state_dict("MaskFeat", theirs) | rest)

    def test_targets_that_do_not_fit(self):
        with pytest.raises(ValueError, match="a patch has 4 pixels a side, a cell 8"):
            self.config(target_options={})
        with pytest.raises(ValueError, match="must be 'vit'; got 'resnet'"):
            MaskFeatConfig(backbone_config={"model_type": "resnet"})
