import pytest
import torch
from clustering_common import NUM_CLUSTERS, NUM_IMAGES, ClusteringTests, table
from test_modeling_common import BATCH_SIZE

from ssl_hub import ODCConfig, ODCForImageClassification, ODCModel
from ssl_hub.lifecycle import Progress
from ssl_hub.modules.memories import OnlineClusterMemory


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=1)


class TestODC(ClusteringTests):
    config_class, model_class, classifier_class = ODCConfig, ODCModel, ODCForImageClassification
    tiny = {
        "num_clusters": NUM_CLUSTERS,
        "projection_hidden_size": 32,
        "projection_size": 32,
        "min_cluster_size": 3,
        "dropout": 0.0,
        "centroid_interval": 1,
    }

    def model(self, **overrides):
        model = super().model(**overrides)
        generator = torch.Generator().manual_seed(3)
        model.memory.features.copy_(unit(torch.rand(model.memory.features.shape, generator=generator)))
        return model

    def test_images_are_clustered_once_in_a_run(self):
        model = self.model().double()
        model.begin_run(NUM_IMAGES)
        weights = model.begin_epoch(Progress(0, 100, 40), table())
        assert torch.equal(weights, torch.ones(NUM_IMAGES))
        assert torch.allclose(model.memory.features, unit(table()().features))
        members = model.memory.features[model.memory.labels == 2]
        assert torch.allclose(model.memory.centroids[2], members.mean(dim=0))
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

        def no_features(extract=None):
            raise AssertionError("the features were asked for")

        assert torch.equal(model.begin_epoch(Progress(40, 100, 40), no_features), weights)
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert model.redrawn_parameters == ()

    def test_a_step_moves_the_bank(self):
        model = self.model().train()
        memory, indices = model.memory, torch.arange(BATCH_SIZE)
        memory.update_centroids()
        before = {name: buffer.clone() for name, buffer in memory.named_buffers()}
        outputs = model(self.images(), mode="loss", indices=indices)
        with torch.no_grad():
            projections = model.train().project(self.images())
        expected = unit(0.5 * before["features"][:BATCH_SIZE] + 0.5 * unit(projections))
        assert torch.allclose(memory.features[:BATCH_SIZE], expected, atol=1e-6)
        assert torch.equal(memory.features[BATCH_SIZE:], before["features"][BATCH_SIZE:])
        assert torch.equal(memory.labels[:BATCH_SIZE], (expected @ memory.centroids.T).argmax(dim=1))
        changed = memory.labels[:BATCH_SIZE] != before["labels"][:BATCH_SIZE]
        assert outputs.losses["change_ratio"] == changed.float().mean()
        memory.load_state_dict(before)
        assert "change_ratio" not in model.eval()(self.images(), mode="loss", indices=indices).losses
        assert torch.equal(memory.features, before["features"])

    def test_of_an_image_that_comes_twice_the_last_one_counts(self):
        memories = [OnlineClusterMemory(3, 4, momentum=0.5) for _ in range(2)]
        rows = torch.randn(5, 4)
        for memory in memories:
            memory.start(6)
            memory.centroids.copy_(torch.eye(3, 4))
        memories[0].update(torch.tensor([2, 1, 2, 4, 2]), rows)
        memories[1].update(torch.tensor([1, 4, 2]), rows[[1, 3, 4]])
        assert torch.equal(memories[0].features, memories[1].features)
        assert torch.equal(memories[0].labels, memories[1].labels)

    def test_centroids_follow_at_an_interval(self):
        model = self.model(centroid_interval=3)
        before = model.memory.centroids.clone()
        model.end_step(Progress(2, 10))
        assert torch.equal(model.memory.centroids, before)
        model.end_step(Progress(3, 10))
        assert not torch.allclose(model.memory.centroids, before)

    def test_small_clusters_are_filled_by_large_ones(self):
        model = self.model(min_cluster_size=4)
        model.memory.labels.copy_(torch.tensor([0] * 20 + [1] * 17 + [2] * 3 + [3] * 0))
        model.end_step(Progress(1, 10))
        sizes = model.memory.sizes()
        assert sizes.sum() == NUM_IMAGES and sizes.min() > 0
        expected = sizes**-0.5
        assert torch.allclose(model.memory.class_weights, expected / expected.sum())

    def test_the_loss_weighs_small_clusters_more(self):
        model = self.model().eval()
        model.memory.labels.copy_((torch.arange(NUM_IMAGES) >= 10).long())
        model.update_class_weights()
        weights = torch.where(torch.arange(BATCH_SIZE) * 3 >= 10, 30**-0.5, 10**-0.5)
        logits = model(self.images(), mode="predict").logits
        losses = torch.nn.functional.cross_entropy(logits, (weights < 0.3).long(), reduction="none")
        loss = model(self.images(), mode="loss", **self.loss_inputs(BATCH_SIZE)).loss
        assert torch.isclose(loss, (losses * weights).sum() / weights.sum())

    def test_more_values_that_cannot_work(self):
        with pytest.raises(ValueError, match=r"dropout must be a number in \[0, 1\), got 1.0"):
            self.config(dropout=1.0)
        with pytest.raises(ValueError, match=r"memory_momentum must be a number in \(0, 1\], got 0.0"):
            self.config(memory_momentum=0.0)
        with pytest.raises(ValueError, match="12 clusters .* 3 images each need 36 .* has 35: set num_clusters to 11"):
            self.model_class(self.config(num_clusters=12)).begin_run(35)
