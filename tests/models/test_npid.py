import logging

import pytest
import torch
from joint_embedding_common import BACKBONES, AnyBackboneTests
from test_modeling_common import BATCH_SIZE
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel

from ssl_hub import NPIDConfig, NPIDForImageClassification, NPIDModel
from ssl_hub.models.npid import modeling_npid
from ssl_hub.models.npid.modeling_npid import instance_contrast
from ssl_hub.modules.memories import InstanceMemory

NUM_SAMPLES = 32


class LargestTensor(TorchDispatchMode):
    """Notes how many values the largest tensor has that is made."""

    num_values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for each in output if isinstance(output, tuple | list) else [output]:
            if isinstance(each, torch.Tensor):
                self.num_values = max(self.num_values, each.numel())
        return output


class TestNPID(AnyBackboneTests):
    config_class, model_class, classifier_class = NPIDConfig, NPIDModel, NPIDForImageClassification
    tiny = {"projection_size": 16, "num_negatives": 64}
    # The memory begins with random vectors, which are easily told apart.
    learning_rate, first_step, training_steps, loss_ratio = 1e-3, 45, 180, 0.98

    def model(self, **overrides):
        model = super().model(**overrides)
        model.begin_run(NUM_SAMPLES)
        return model

    @classmethod
    def loss_inputs(cls, batch_size):
        return {"indices": torch.arange(batch_size) * 3 % NUM_SAMPLES}

    def loss(self, model, **inputs):
        return model(self.images(), mode="loss", **{**self.loss_inputs(BATCH_SIZE), **inputs})

    # The loss

    def test_loss_is_that_of_the_softmax_over_drawn_rows(self):
        model = self.model().double().eval()
        negatives = torch.randint(NUM_SAMPLES, (BATCH_SIZE, 64))
        model.draw_negatives = lambda indices: negatives
        images, inputs = self.images().double(), self.loss_inputs(BATCH_SIZE)
        outputs = model(images, mode="loss", **inputs)
        outputs.loss.backward()
        gradient = model.neck.weight.grad.clone()

        model.zero_grad()
        projection = torch.nn.functional.normalize(model.neck(model(images).pooler_output), dim=1)
        memory = model.memory.features
        positive = (projection * memory[inputs["indices"]]).sum(dim=1, keepdim=True)
        negative = torch.einsum("bd,bkd->bk", projection, memory[negatives])
        logits = torch.cat([positive, negative], dim=1) / 0.07
        expected = cross_entropy(logits, torch.zeros(BATCH_SIZE, dtype=torch.long))
        expected.backward()
        assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-9)
        assert (gradient - model.neck.weight.grad).norm() <= 1e-9 * gradient.norm()

    def test_accuracy_is_about_other_rows(self):
        memory = torch.eye(4)
        negatives = torch.tensor([[0, 1], [1, 2], [1, 3]])  # the own row is there too, and is no confusion
        projections = torch.nn.functional.normalize(memory[:3] + torch.tensor([[0.5], [0], [0]]) * memory[1], dim=1)
        accuracy = lambda x: instance_contrast(x, memory, torch.arange(3), negatives, 0.1)[1].item()  # noqa: E731
        assert accuracy(projections) == 1
        projections[2] = memory[3]
        assert accuracy(projections) == pytest.approx(2 / 3)
        assert accuracy(torch.full((3, 4), 0.5)) == 0  # collapsed: as near to all

    def test_gradient_of_the_loss_in_parts(self, monkeypatch):
        memory = torch.nn.functional.normalize(torch.randn(50, 8, dtype=torch.double), dim=1)
        indices, negatives = torch.arange(6), torch.randint(50, (6, 20))
        projections = memory[:6].flip(0).clone().requires_grad_()
        losses = []
        for limit in (10**9, 120, 1):  # all at once, by two, by one
            monkeypatch.setattr(modeling_npid, "MAX_SIMILARITIES", limit)
            losses.append(instance_contrast(projections, memory, indices, negatives, 0.2)[0])
        assert losses[1].item() == losses[2].item() == pytest.approx(losses[0].item(), rel=1e-12)
        loss = lambda x: instance_contrast(x, memory, indices, negatives, 0.2)[0]  # noqa: E731
        assert torch.autograd.gradcheck(loss, projections)

    def test_no_tensor_is_larger_than_it_has_to_be(self, monkeypatch):
        """The vectors of all negatives would be 64 x 3000 x 16 values, the similarities with all rows 64 x 5000."""
        monkeypatch.setattr(modeling_npid, "MAX_SIMILARITIES", 50_000)
        memory = torch.nn.functional.normalize(torch.randn(5000, 16), dim=1)
        projections = memory[:64].clone().requires_grad_()
        indices, negatives = torch.arange(64), torch.randint(5000, (64, 3000))
        with LargestTensor() as largest:
            instance_contrast(projections, memory, indices, negatives, 0.07)[0].backward()
        assert largest.num_values <= max(50_000, memory.numel())

    # The negatives

    def test_negatives_are_drawn_evenly(self):
        model, own = self.model(num_negatives=20_000), torch.tensor([0, 5, NUM_SAMPLES - 1])
        for ensure in (False, True):
            model.config.ensure_negatives = ensure
            negatives = model.draw_negatives(own)
            assert negatives.shape == (3, 20_000)
            counts = torch.stack([row.bincount(minlength=NUM_SAMPLES) for row in negatives])
            expected = torch.full((3, NUM_SAMPLES), 20_000 / (NUM_SAMPLES - ensure))
            if ensure:
                expected[range(3), own] = 0
            assert (counts - expected).abs().max() < 6 * 25  # standard deviations

    # The memory

    def test_rows_move_towards_the_projections(self):
        model = self.model().train()
        memory, before = model.memory.features, model.memory.features.clone()
        assert torch.allclose(before.norm(dim=1), torch.ones(NUM_SAMPLES))
        indices = self.loss_inputs(BATCH_SIZE)["indices"]
        projections = model.eval()(self.images(), mode="predict").projection
        self.loss(model.train())
        expected = torch.nn.functional.normalize((before[indices] + projections) / 2, dim=1)
        assert torch.allclose(memory[indices], expected, atol=1e-5)
        others = torch.ones(NUM_SAMPLES, dtype=torch.bool).index_fill(0, indices, False)
        assert torch.equal(memory[others], before[others])
        state = memory.clone()
        self.loss(model.eval())
        assert torch.equal(memory, state)

    def test_of_an_image_that_is_there_twice_the_last_feature_counts(self):
        memory = InstanceMemory(4, 2, momentum=0.5)
        memory.start(4)
        before = memory.features.clone()
        features = torch.nn.functional.normalize(torch.randn(5, 2), dim=1)
        memory.update(torch.tensor([1, 3, 1, 2, 1]), features)
        for row, last in ((1, 4), (2, 3), (3, 1)):
            expected = torch.nn.functional.normalize(before[row] + features[last], dim=0)
            assert torch.allclose(memory.features[row], expected, atol=1e-6)
        assert torch.equal(memory.features[0], before[0])

    def test_memory_has_the_size_of_the_dataset(self, tmp_path, caplog):
        model = NPIDModel(self.config())
        assert model.memory.features.shape == (0, 16)
        model.begin_run(12)
        assert (model.memory.features.shape, model.config.memory_size) == ((12, 16), 12)
        kept = model.memory.features.clone()
        model.begin_run(12)
        assert torch.equal(model.memory.features, kept)
        model.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path)
        assert torch.equal(loaded.memory.features, kept)
        with caplog.at_level(logging.WARNING):
            loaded.begin_run(20)
        assert "memory is of a dataset of 12 images, this one has 20: it starts anew" in caplog.text
        assert (len(loaded.memory.features), loaded.config.memory_size) == (20, 20)

    def test_a_model_that_is_shared_without_its_memory(self, tmp_path):
        model = self.model().eval()
        state = {n: t for n, t in model.state_dict().items() if not n.startswith(model.training_state)}
        model.save_pretrained(tmp_path, state_dict=state)
        loaded = AutoModel.from_pretrained(tmp_path)
        assert (loaded.memory.features.shape, loaded.config.memory_size) == ((0, 16), 0)
        outputs = loaded(self.images(), mode="predict")
        assert torch.equal(outputs.projection, model(self.images(), mode="predict").projection)
        assert outputs.nearest_indices is None and outputs.similarities is None
        loaded.begin_run(NUM_SAMPLES)
        assert torch.isfinite(self.loss(loaded.train()).loss)

    def test_predict_gives_the_nearest_images(self):
        model = self.model().eval()
        projection = model(self.images(), mode="predict").projection
        assert torch.allclose(projection.norm(dim=1), torch.ones(BATCH_SIZE))
        model.memory.features[7] = projection[2]
        outputs = model(self.images(), mode="predict", num_nearest=3)
        assert outputs.nearest_indices.shape == outputs.similarities.shape == (BATCH_SIZE, 3)
        assert outputs.nearest_indices[2, 0] == 7
        assert outputs.similarities[2, 0].item() == pytest.approx(1.0, abs=1e-6)
        assert (outputs.similarities.diff(dim=1) <= 0).all()
        assert model(self.images(), mode="predict", num_nearest=100).nearest_indices.shape == (BATCH_SIZE, NUM_SAMPLES)

    # What cannot work

    def test_a_stream_has_no_images_to_remember(self):
        with pytest.raises(ValueError, match="does not say how many it has: load it without .*such as MoCo"):
            self.model().begin_run(None)

    def test_indices_that_cannot_work(self):
        model = self.model().train()
        before = model.memory.features.clone()
        indices = self.loss_inputs(BATCH_SIZE)["indices"]
        for wrong, message in (
            (indices + NUM_SAMPLES, r"must lie in \[0, 32\), .* got 32 to 53"),
            (indices - 1, r"got -1 to 20"),
            (indices[1:], r"must be the 8 rows of the images .* got torch.int64 of the shape \(7,\)"),
            (indices.float(), r"got torch.float32"),
        ):
            with pytest.raises(ValueError, match=message):
                self.loss(model, indices=wrong)
        assert torch.equal(model.memory.features, before)
        with pytest.raises(TypeError, match="indices"):
            model(self.images(), mode="loss")
        with pytest.raises(ValueError, match=r"call model.begin_run\(num_samples\), with the number of images"):
            self.loss(NPIDModel(self.config()).train())

    def test_a_memory_of_another_dataset_is_not_loaded_into_a_run(self):
        saved, model = self.model().state_dict(), self.model()
        model.begin_run(20)
        with pytest.raises(
            RuntimeError,
            match=r"holds 32 images x 16 features and this run's 20 images x 16 features\. A run resumes with",
        ):
            model.load_state_dict(saved)

    def test_a_batch_of_one_with_batchnorm(self):
        model = self.model(backbone_config=BACKBONES["resnet"]).train()
        with pytest.raises(ValueError, match="needs at least two samples"):
            model(self.images(1), mode="loss", indices=torch.tensor([0]))

    def test_values_that_cannot_work(self):
        for name, value, message in (
            ("num_negatives", 0, "num_negatives must be a whole number of at least 1, got 0"),
            ("temperature", 0.0, "temperature must be a number above 0"),
            ("memory_momentum", 0.0, r"memory_momentum must be a number in \(0, 1\], got 0"),
            ("memory_size", -1, "memory_size must be a whole number of at least 0, got -1"),
        ):
            with pytest.raises(ValueError, match=message):
                self.config(**{name: value})
        with pytest.raises(ValueError, match="ensure_negatives needs a dataset of at least two images"):
            NPIDModel(self.config(ensure_negatives=True)).begin_run(1)
