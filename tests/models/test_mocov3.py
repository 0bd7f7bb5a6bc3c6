import pytest
from joint_embedding_common import JointEmbeddingTests

from ssl_hub import MoCoV3Config, MoCoV3ForImageClassification, MoCoV3Model


class TestMoCoV3(JointEmbeddingTests):
    config_class, model_class, classifier_class = MoCoV3Config, MoCoV3Model, MoCoV3ForImageClassification

    tiny = {"projection_hidden_size": 32, "projection_size": 16, "predictor_hidden_size": 24}

    def test_defaults_by_backbone(self):
        config = MoCoV3Config()
        assert (config.temperature, config.projection_num_layers, config.predictor_last_batchnorm) == (0.2, 3, True)
        assert (config.backbone_config.hidden_size, config.backbone_config.num_attention_heads) == (384, 12)
        config = MoCoV3Config(backbone_config={"model_type": "resnet"})
        assert (config.temperature, config.projection_num_layers, config.predictor_last_batchnorm) == (1.0, 2, False)

    def test_patch_projection_is_frozen(self, tmp_path):
        model = self.model()
        model.save_pretrained(tmp_path)
        for each in (model, MoCoV3Model.from_pretrained(tmp_path)):
            frozen = [n for n, p in each.named_parameters() if not p.requires_grad and n.startswith("backbone.")]
            assert len(frozen) == 2 and all("patch_embeddings" in n for n in frozen)
            assert not any(p.requires_grad for p in each.teacher.parameters())
        assert all(p.requires_grad for p in self.model(freeze_patch_projection=False).backbone.parameters())

    def test_no_gradient_goes_into_the_keys(self):
        model = self.model().train()
        model(self.images(), mode="loss").loss.backward()
        assert all(p.grad is None for p in model.teacher.parameters())

    def test_initialisation(self):
        backbone = self.model().backbone
        weight = backbone.layers[0].attention.q_proj.weight
        assert weight.abs().max().item() == pytest.approx((6 / 64) ** 0.5, rel=0.02)
        assert backbone.embeddings.cls_token.abs().max() < 1e-5
        assert (backbone.embeddings.patch_embeddings.projection.bias == 0).all()
