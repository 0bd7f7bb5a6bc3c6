import pytest
import torch
from test_modeling_common import BATCH_SIZE, SSLModelTests
from transformers import BeitForMaskedImageModeling, BeitModel

from ssl_hub import BEiTV1Config, BEiTV1ForImageClassification, BEiTV1Model

TINY = {
    "backbone_config": {
        "image_size": 16,
        "patch_size": 4,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "drop_path_rate": 0.0,
    },
    "mask_ratio": 0.3,
    "target_random": True,
    "target_options": {"size": 16, "network": {"hidden_size": 8, "num_blocks_per_group": 1}},
}


class TestBEiTV1(SSLModelTests):
    config_class, model_class, classifier_class = BEiTV1Config, BEiTV1Model, BEiTV1ForImageClassification
    training_steps = 60

    @classmethod
    def config(cls, **overrides):
        return BEiTV1Config(**{**TINY, **overrides})

    def model(self, **overrides):
        model = super().model(**overrides)
        model.begin_run(20)  # what is compiled cannot load a network
        return model

    @classmethod
    def loss_inputs(cls, batch_size):
        mask = torch.zeros(batch_size, 16, dtype=torch.bool)
        for row in range(batch_size):
            mask[row, [(row + shift) % 16 for shift in (0, 3, 4, 7, 12)]] = True
        targets = torch.rand(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(2))
        return {"bool_masked_pos": mask, "target_pixel_values": 0.8 * targets + 0.1}

    def test_defaults_are_the_paper(self):
        config = BEiTV1Config()
        backbone = config.backbone_config
        assert (config.mask_kind, config.num_masked_patches(196)) == ("blockwise", 75)
        assert (backbone.use_shared_relative_position_bias, backbone.use_absolute_position_embeddings) == (True, False)
        assert (backbone.layer_scale_init_value, backbone.drop_path_rate) == (0.1, 0.1)
        with torch.device("meta"):
            assert BEiTV1Model(config).neck.out_features == 8192

    def test_initialisation_is_that_of_the_paper(self):
        model = self.model(backbone_config={**TINY["backbone_config"], "hidden_size": 256})
        for depth, layer in enumerate(model.backbone.layers, start=1):
            for weight, scale in (
                (layer.attention.q_proj.weight, 1.0),
                (layer.attention.o_proj.weight, (2 * depth) ** -0.5),
                (layer.mlp.fc2.weight, (2 * depth) ** -0.5),
            ):
                assert weight.std().item() == pytest.approx(0.02 * scale, rel=0.03)
        assert model.backbone.embeddings.mask_token.std().item() == pytest.approx(0.02, rel=0.2)

    def test_equals_transformers(self):
        """Its BeitForMaskedImageModeling has the same weights, the same mask, and the loss of its labels."""
        model, inputs = self.model().eval(), self.loss_inputs(BATCH_SIZE)
        config = model.config.backbone_config
        theirs = BeitForMaskedImageModeling(
            type(config)(**{**config.to_dict(), "vocab_size": 16, "use_mean_pooling": True})
        )
        state = {
            f"beit.{key}": tensor for key, tensor in model.backbone.state_dict().items() if "layernorm." not in key[:10]
        }
        state |= {f"layernorm.{name}": getattr(model.backbone.layernorm, name) for name in ("weight", "bias")}
        state |= {f"lm_head.{name}": getattr(model.neck, name) for name in ("weight", "bias")}
        theirs.load_state_dict(state)
        mask = inputs["bool_masked_pos"]
        tokens = model.target_generator(self.one_view(), inputs["target_pixel_values"])
        expected = theirs.eval()(self.one_view(), bool_masked_pos=mask, labels=tokens[mask]).loss
        loss = model(self.one_view(), mode="loss", **inputs).loss
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)

    def test_prediction_is_tokens(self):
        outputs = self.model().eval()(self.one_view(), mode="predict", **self.loss_inputs(BATCH_SIZE))
        assert outputs.prediction.shape == outputs.target.shape == (BATCH_SIZE, 5)
        assert torch.equal(outputs.accuracy, (outputs.prediction == outputs.target).float().mean(dim=1))

    def test_images_of_another_size(self):
        outputs = self.model()(torch.randn(2, 3, 24, 24), mode="predict")
        assert outputs.mask.shape == (2, 36) and outputs.prediction.shape == (2, 11)

    def test_backbone_as_plain_beit(self, tmp_path):
        model = self.model().eval()
        model.backbone.save_pretrained(tmp_path)
        plain, info = BeitModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        images, mask = self.one_view(), self.loss_inputs(BATCH_SIZE)["bool_masked_pos"]
        for own, other in ((model(images), plain.eval()(images)), (model.backbone(images, mask), plain(images, mask))):
            assert torch.equal(own.last_hidden_state, other.last_hidden_state)

    def test_configurations_that_cannot_work(self):
        with pytest.raises(ValueError, match="needs use_mask_token True and use_mean_pooling False"):
            BEiTV1Config(backbone_config={"use_mask_token": False})
        with pytest.raises(ValueError, match="must be 'beit'; got 'vit'"):
            BEiTV1Config(backbone_config={"model_type": "vit"})
