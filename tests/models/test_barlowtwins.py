import pytest
import torch
from joint_embedding_common import JointEmbeddingTests

from ssl_hub import BarlowTwinsConfig, BarlowTwinsForImageClassification, BarlowTwinsModel


class TestBarlowTwins(JointEmbeddingTests):
    config_class, model_class, classifier_class = BarlowTwinsConfig, BarlowTwinsModel, BarlowTwinsForImageClassification

    tiny = {"projection_hidden_size": 32, "projection_size": 16}
    training_steps = 30

    def test_loss_of_a_known_correlation(self):
        """Equal views are fully correlated on the diagonal; independent dimensions leave nothing off it."""
        model = self.model()
        orthogonal = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        model.head.bn = torch.nn.BatchNorm1d(2, affine=False, eps=1e-12)
        on_diagonal, off_diagonal = model.head(orthogonal, orthogonal)
        assert on_diagonal.item() == pytest.approx(0.0, abs=1e-6)
        assert off_diagonal.item() == pytest.approx(0.0, abs=1e-6)
        on_diagonal, off_diagonal = model.head(orthogonal, orthogonal.flip(1))
        assert (on_diagonal.item(), off_diagonal.item()) == (pytest.approx(2.0), pytest.approx(2.0))

    def test_weights_of_the_terms(self):
        outputs = self.model().train()(self.images(), mode="loss")
        terms = outputs.losses
        assert outputs.loss.item() == pytest.approx((terms["on_diagonal"] + 0.0051 * terms["off_diagonal"]).item())
        scaled = self.model(loss_scale=0.1, off_diagonal_weight=1.0).train()(self.images(), mode="loss")
        assert scaled.loss.item() == pytest.approx(
            0.1 * (terms["on_diagonal"] + terms["off_diagonal"]).item(), rel=1e-5
        )

    def test_projector_initialisation(self):
        weight = BarlowTwinsModel(self.config(projection_hidden_size=256)).neck.fc1.weight
        assert weight.abs().max().item() == pytest.approx((6 / 256) ** 0.5, rel=0.01)
