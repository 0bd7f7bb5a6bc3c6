import pytest
import torch
from joint_embedding_common import JointEmbeddingTests
from test_modeling_common import BATCH_SIZE

from ssl_hub import MoCoConfig, MoCoForImageClassification, MoCoModel


class TestMoCo(JointEmbeddingTests):
    config_class, model_class, classifier_class = MoCoConfig, MoCoModel, MoCoForImageClassification

    tiny = {"projection_hidden_size": 32, "projection_size": 16, "queue_size": 512, "teacher_momentum": 0.99}
    # The queue begins with random keys, which are easily told apart.
    learning_rate, first_step, training_steps, loss_ratio = 1e-3, 16, 80, 0.98

    def test_version_1(self):
        model = self.model(mlp_projector=False, temperature=0.07)
        assert isinstance(model.neck.fc, torch.nn.Linear)
        assert torch.isfinite(model(self.images(), mode="loss").loss)

    def test_queue_takes_in_the_keys_and_wraps_around(self):
        model = self.model(queue_size=24).train()
        assert torch.allclose(model.memory.vectors.norm(dim=1), torch.ones(24))
        before = model.memory.vectors.clone()
        keys = model.keys(self.images()[1])
        model(self.images(), mode="loss")
        assert torch.allclose(model.memory.vectors[:BATCH_SIZE], keys, atol=1e-6)
        assert torch.equal(model.memory.vectors[BATCH_SIZE:], before[BATCH_SIZE:])
        for pointer in (16, 0, 8):
            model(self.images(), mode="loss")
            assert model.memory.pointer == pointer
        state = model.memory.vectors.clone()
        model.eval()(self.images(), mode="loss")
        assert torch.equal(model.memory.vectors, state)

    def test_queue_size_that_the_batch_does_not_divide(self):
        model = self.model(queue_size=60).train()
        message = (
            "60 must be a multiple of the batch size of all processes, 8; batch sizes .*: 6, 10. .* queue_size to 56"
        )
        with pytest.raises(ValueError, match=message):
            model(self.images(), mode="loss")

    def test_negatives_are_those_of_the_queue(self):
        model = self.model(queue_size=16).eval()
        query = torch.nn.functional.normalize(model.project(self.images()[0]), dim=1)
        logits = torch.cat([(query * model.keys(self.images()[1])).sum(1)[:, None], query @ model.memory.vectors.T], 1)
        expected = torch.nn.functional.cross_entropy(logits / 0.2, torch.zeros(BATCH_SIZE, dtype=torch.long))
        assert model(self.images(), mode="loss").loss.item() == pytest.approx(expected.item(), rel=1e-5)

    def test_values_that_cannot_work(self):
        with pytest.raises(ValueError, match="temperature must be a number above 0, got -0.1"):
            self.config(temperature=-0.1)
        with pytest.raises(ValueError, match="queue_size must be a whole number of at least 1, got 0"):
            self.config(queue_size=0)
