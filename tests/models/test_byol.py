import pytest
import torch
from joint_embedding_common import JointEmbeddingTests

from ssl_hub import BYOLConfig, BYOLForImageClassification, BYOLModel
from ssl_hub.lifecycle import Progress


class TestBYOL(JointEmbeddingTests):
    config_class, model_class, classifier_class = BYOLConfig, BYOLModel, BYOLForImageClassification

    tiny = {"projection_hidden_size": 32, "projection_size": 16, "predictor_hidden_size": 24}

    def test_defaults_are_published(self):
        config = BYOLConfig()
        assert (config.projection_hidden_size, config.projection_size, config.teacher_base_momentum) == (
            4096,
            256,
            0.99,
        )

    def test_teacher_follows_by_a_cosine_and_has_no_gradient(self):
        model = self.model(teacher_base_momentum=0.9)
        student, teacher = model.neck.fc0.weight, model.teacher.neck.fc0.weight
        assert torch.equal(student, teacher) and not teacher.requires_grad
        student.data += 1.0
        before = teacher.clone()
        model.end_step(Progress(1, 2))  # momentum 0.95 half-way
        assert torch.allclose(teacher, 0.95 * before + 0.05 * student, atol=1e-6)
        before = teacher.clone()
        model.end_step(Progress(2, 2))  # momentum 1 at the end
        assert torch.equal(teacher, before)

    def test_loss_is_that_of_the_paper_less_four(self):
        """With a predictor that returns what the teacher says the loss is at its minimum."""
        model = self.model().eval()
        model.head.forward = lambda projections: projections
        views = [self.one_view(), self.one_view()]
        assert model(views, mode="loss").loss.item() == pytest.approx(-4.0, abs=1e-5)

    def test_momentum_outside_its_range(self):
        with pytest.raises(ValueError, match=r"teacher_base_momentum must be a number in \[0, 1\], got 1.5"):
            self.config(teacher_base_momentum=1.5)
