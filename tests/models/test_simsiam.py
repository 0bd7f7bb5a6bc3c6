import re

from joint_embedding_common import BACKBONES, JointEmbeddingTests

from ssl_hub import SimSiamConfig, SimSiamForImageClassification, SimSiamModel


class TestSimSiam(JointEmbeddingTests):
    config_class, model_class, classifier_class = SimSiamConfig, SimSiamModel, SimSiamForImageClassification

    tiny = {"projection_hidden_size": 32, "projection_size": 16, "predictor_hidden_size": 8}

    def test_gradient_stops_at_the_target(self):
        """Without the predictor's path nothing would reach the projector: its gradient comes through one view only."""
        model = self.model().eval()
        model.head.forward = lambda projections: projections.detach().requires_grad_()
        model(self.images(), mode="loss").loss.backward()
        assert all(p.grad is None for p in model.neck.parameters())

    def test_predictor_keeps_its_learning_rate(self):
        (rule,) = SimSiamModel.parameter_rules
        names = [n for n, _ in self.model().named_parameters() if rule.constant_lr and re.search(rule.pattern, n)]
        assert names == [n for n, _ in self.model().named_parameters() if "predictor" in n] != []

    def test_residual_blocks_start_as_the_identity(self):
        model = self.model(backbone_config=BACKBONES["resnet"])
        for stage in model.backbone.encoder.stages:
            assert (stage.layers[0].layer[-1].normalization.weight == 0).all()
            assert (stage.layers[0].layer[0].normalization.weight == 1).all()
