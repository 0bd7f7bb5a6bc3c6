import pytest
import torch
from joint_embedding_common import JointEmbeddingTests
from test_modeling_common import BATCH_SIZE

from ssl_hub import DenseCLConfig, DenseCLForImageClassification, DenseCLModel
from ssl_hub.lifecycle import Progress


class TestDenseCL(JointEmbeddingTests):
    config_class, model_class, classifier_class = DenseCLConfig, DenseCLModel, DenseCLForImageClassification

    tiny = {"projection_hidden_size": 32, "projection_size": 16, "queue_size": 128, "teacher_momentum": 0.999}
    # The queues begin with random keys, which are easily told apart.
    first_step, training_steps, loss_ratio = 12, 60, 0.97

    def test_two_queues(self):
        model = self.model().train()
        model(self.images(), mode="loss")
        for queue in model.memory.values():
            assert queue.pointer == BATCH_SIZE
        assert not torch.equal(model.memory["global_queue"].vectors[:8], model.memory["dense_queue"].vectors[:8])

    def test_late_start_of_the_dense_loss(self):
        model = self.model(dense_loss_start_step=2).train()
        model.begin_step(Progress(1, 10))
        outputs = model(self.images(), mode="loss")
        assert outputs.loss.item() == pytest.approx(outputs.losses["global"].item())
        model.begin_step(Progress(2, 10))
        outputs = model(self.images(), mode="loss")
        expected = 0.5 * (outputs.losses["global"] + outputs.losses["dense"])
        assert outputs.loss.item() == pytest.approx(expected.item())

    def test_equal_views_match_position_by_position(self):
        model = self.model().eval()
        features, _, dense, _ = model._encode(model.backbone, model.neck, self.one_view())
        match = (features.transpose(1, 2) @ features).argmax(dim=2)
        assert torch.equal(match, torch.arange(16).expand(BATCH_SIZE, -1))
        assert dense.shape == (BATCH_SIZE, 16, 16)

    def test_grid_that_is_not_the_feature_map(self):
        with pytest.raises(ValueError, match="grid_size 3 must be that of the backbone's feature map.*4 x 4"):
            self.model(grid_size=3)(self.images(), mode="loss")

    def test_chunks_give_the_exact_gradient(self):
        """DenseCL's negatives come from queues, so the trainer refuses --loss_chunk_size for it."""
        assert not self.model().supports_loss_chunks
