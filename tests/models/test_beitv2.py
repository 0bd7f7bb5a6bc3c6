import pytest
import test_beitv1
import torch
from test_beitv1 import TINY
from test_modeling_common import BATCH_SIZE, SSLModelTests
from torch.nn.functional import cross_entropy

from ssl_hub import BEiTV2Config, BEiTV2ForImageClassification, BEiTV2Model
from ssl_hub.modules.target_generators.vqkd import tokenizer_fields

TOKENIZER = {**TINY["backbone_config"], **tokenizer_fields(), "num_hidden_layers": 1, "code_size": 6}


class TestBEiTV2(SSLModelTests):
    config_class, model_class, classifier_class = BEiTV2Config, BEiTV2Model, BEiTV2ForImageClassification
    training_steps = 60

    def model(self, **overrides):
        model = super().model(**overrides)
        if model.config.target_random:
            model.begin_run(20)  # what is compiled cannot load a network
        return model

    @classmethod
    def config(cls, **overrides):
        fields = {"early_layer": 1, "target_options": {"size": 16, "network": TOKENIZER}}
        return BEiTV2Config(**{**TINY, **fields, **overrides})

    @classmethod
    def loss_inputs(cls, batch_size):
        inputs = test_beitv1.TestBEiTV1.loss_inputs(batch_size)
        targets = torch.rand(batch_size, 3, 16, 16, generator=torch.Generator().manual_seed(2))
        return {**inputs, "target_pixel_values": 2 * targets - 1}

    def test_defaults_are_the_paper(self):
        config = BEiTV2Config()
        assert (config.early_layer, config.neck_num_hidden_layers, config.num_masked_patches(196)) == (9, 2, 75)
        with torch.device("meta"):
            model = BEiTV2Model(config)
        assert model.neck.predict_targets.out_features == 8192 and len(model.neck.layers) == 2

    def test_initialisation_is_that_of_the_paper(self):
        model = self.model(backbone_config={**TINY["backbone_config"], "hidden_size": 256})
        layer = model.neck.layers[1]  # the third: two come before
        assert layer.attention.o_proj.weight.std().item() == pytest.approx(0.02 * 6**-0.5, rel=0.03)
        assert layer.attention.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert (layer.lambda_1 == 0.1).all() and (model.neck.predict_targets.bias == 0).all()

    def test_loss_adds_the_prediction_of_the_early_patches_and_the_last_class_token(self):
        model, inputs = self.model().eval(), self.loss_inputs(BATCH_SIZE)
        images, mask = self.one_view(), inputs["bool_masked_pos"]
        backbone, seen = model.backbone, []
        handles = [layer.register_forward_hook(lambda _, __, output: seen.append(output)) for layer in backbone.layers]
        backbone(images, bool_masked_pos=mask)
        for handle in handles:
            handle.remove()
        bias = backbone.shared_position_bias((4, 4), dim_size=17)
        tokens = torch.cat([seen[1][:, :1], seen[0][:, 1:]], dim=1)
        for layer in model.neck.layers:
            tokens = layer(tokens, attention_mask=bias)
        target = model.target_generator(images, inputs["target_pixel_values"])[mask]
        expected = [
            cross_entropy(model.neck.predict_targets(backbone.layernorm(hidden)[:, 1:][mask]), target)
            for hidden in (seen[1], tokens)
        ]
        outputs = model(images, mode="loss", **inputs)
        assert outputs.loss.item() == pytest.approx(sum(expected).item(), rel=1e-5)
        assert outputs.losses["aggregation"].item() == pytest.approx(expected[1].item(), rel=1e-5)

    def test_configurations_that_cannot_work(self):
        with pytest.raises(ValueError, match="early_layer must be below the 2 layers of the backbone; got 2"):
            self.config(early_layer=2)
        with pytest.raises(ValueError, match="set target_name_or_path to its folder"):
            BEiTV2Model(self.config(target_random=False)).begin_run(20)
