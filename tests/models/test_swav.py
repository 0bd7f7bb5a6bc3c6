import pytest
import torch
from joint_embedding_common import JointEmbeddingTests
from test_modeling_common import BATCH_SIZE

from ssl_hub import SwAVConfig, SwAVForImageClassification, SwAVModel
from ssl_hub.lifecycle import Progress
from ssl_hub.models.swav.modeling_swav import sinkhorn


class TestSwAV(JointEmbeddingTests):
    config_class, model_class, classifier_class = SwAVConfig, SwAVModel, SwAVForImageClassification

    tiny = {
        "projection_hidden_size": 32,
        "projection_size": 16,
        "num_small_crops": 2,
        "num_prototypes": 12,
        "queue_size": 16,
        "queue_start_epoch": 0,
        "freeze_prototypes_steps": 0,
    }
    views = (
        {"count": 2, "size": 16, "scale": [0.4, 1.0]},
        {"count": 2, "size": 8, "scale": [0.1, 0.4]},
    )
    loss_ratio = 0.97

    @classmethod
    def images(cls, batch_size=BATCH_SIZE):
        generator = torch.Generator().manual_seed(1)
        return [torch.randn(batch_size, 3, side, side, generator=generator) for side in (16, 16, 8, 8)]

    def test_sinkhorn_shares_the_prototypes_evenly(self):
        scores = torch.randn(64, 8).tanh()
        assignments = sinkhorn(scores, 0.05, 30)
        assert torch.allclose(assignments.sum(dim=1), torch.ones(64), atol=1e-4)
        assert torch.allclose(assignments.sum(dim=0), torch.full((8,), 8.0), atol=0.05)
        assert torch.isfinite(sinkhorn(torch.ones(4, 8).bfloat16(), 0.05, 3)).all()

    def test_sinkhorn_of_a_sample_far_from_every_prototype(self):
        scores = torch.rand(16, 8, generator=torch.Generator().manual_seed(0))
        scores[0] -= 1.9
        assignments, expected = sinkhorn(scores, 0.05, 3), sinkhorn(scores.double(), 0.05, 3)
        torch.testing.assert_close(assignments, expected.float(), rtol=1e-4, atol=1e-6)
        assert torch.allclose(assignments.sum(dim=1), torch.ones(16))

    def test_crops_of_one_size_run_as_one_batch(self):
        model, sizes = self.model().train(), []
        model.backbone.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape)))
        model(self.images(), mode="loss")
        assert sizes == [(2 * BATCH_SIZE, 3, 16, 16), (2 * BATCH_SIZE, 3, 8, 8)]

    def test_prototypes_are_unit_vectors_and_frozen_at_first(self):
        model = self.model(freeze_prototypes_steps=1).train()
        for step, moves in enumerate((False, True)):
            model.begin_step(Progress(step, 10))
            model.zero_grad()
            model(self.images(), mode="loss").loss.backward()
            assert torch.allclose(model.head.prototypes.weight.norm(dim=1), torch.ones(12), atol=1e-6)
            assert bool(model.head.prototypes.weight.grad.any()) is moves, step

    def test_queue_fills_from_its_epoch_and_serves_when_full(self):
        model = self.model(queue_start_epoch=2, queue_size=16).train()
        model.begin_step(Progress(19, 50, steps_per_epoch=10))
        model(self.images(), mode="loss")
        assert not model.memory.vectors.any()
        model.begin_step(Progress(20, 50, steps_per_epoch=10))
        for full in (False, True):
            model(self.images(), mode="loss")
            assert bool(model.memory.is_full()) is full
        plain = self.model(queue_size=0).eval()(self.images(), mode="loss").loss
        with_queue = model.eval()(self.images(), mode="loss").loss
        assert not torch.isclose(plain, with_queue)

    def test_a_stream_has_no_epoch_for_the_queue_to_start(self):
        with pytest.raises(ValueError, match="without streaming, or set the epoch .* to 0"):
            self.model(queue_start_epoch=2).begin_step(Progress(0, 50))
        self.model(queue_start_epoch=0).begin_step(Progress(0, 50))

    def test_values_that_cannot_work(self):
        with pytest.raises(ValueError, match="num_prototypes must be a whole number of at least 2, got 1"):
            self.config(num_prototypes=1)
        with pytest.raises(ValueError, match="compares at least two crops"):
            self.config(num_large_crops=1, num_small_crops=0)
