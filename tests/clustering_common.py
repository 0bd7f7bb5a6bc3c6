"""What every algorithm that clusters images must do besides what every algorithm must."""

import pytest
import torch
from joint_embedding_common import BACKBONES, VIT, AnyBackboneTests
from test_modeling_common import BATCH_SIZE
from transformers import AutoModel

from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.data.loading import build_eval_loader, build_train_loader
from ssl_hub.data.processing import Normalize, build_image_processor
from ssl_hub.data.views import build_views
from ssl_hub.lifecycle import FeatureTable, Progress
from ssl_hub.modules.clustering import normalized_mutual_information

NUM_IMAGES, NUM_CLUSTERS = 40, 4


def digits_features(model, dataset):
    """What a trainer gives `begin_epoch`."""

    def features(extract=None):
        image_processor = build_image_processor(16, model.config.image_mean, model.config.image_std)
        loader = build_eval_loader(dataset, image_processor, batch_size=256)
        extract = extract or (lambda pixel_values: model(pixel_values).pooler_output)
        model.eval()
        with torch.no_grad():
            rows = torch.cat([extract(batch["pixel_values"]) for batch in loader])
        model.train()
        return FeatureTable(rows, torch.ones(len(rows), dtype=torch.bool))

    return features


def table(num_images=NUM_IMAGES, unknown=(), seed=2):
    """Random features of `num_images` images around five points, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(5, VIT["hidden_size"], generator=generator).double().abs()
    noise = torch.randn(num_images, VIT["hidden_size"], generator=generator).double().abs()
    known = torch.ones(num_images, dtype=torch.bool)
    known[list(unknown)] = False
    rows = points[torch.arange(num_images) % 5] + 0.1 * noise
    return lambda extract=None: FeatureTable(rows * known[:, None], known)


class ClusteringTests(AnyBackboneTests):
    learning_rate = 1e-2
    tiny = {"num_clusters": NUM_CLUSTERS}

    @classmethod
    def loss_inputs(cls, batch_size):
        return {"indices": 3 * torch.arange(batch_size)}

    def model(self, **overrides):
        """In the middle of a run."""
        model = super().model(**overrides)
        model.begin_run(NUM_IMAGES)
        model.memory.labels.copy_(torch.arange(NUM_IMAGES) % model.config.num_clusters)
        return model

    def test_loss_falls_on_real_images(self):
        """In one epoch: the next one has clusters and a classifier of its own."""
        dataset, model = load_image_dataset("digits"), self.model(backbone_config=BACKBONES["resnet"]).train()
        views = build_views(list(self.views))
        loader = build_train_loader(dataset, views, batch_size=32, seed=0)
        normalize = Normalize(model.config.image_mean, model.config.image_std, views)
        model.begin_run(len(dataset))
        weights = model.begin_epoch(Progress(0, 100, 40), digits_features(model, dataset))
        assert weights.shape == (len(dataset),)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.learning_rate)
        losses = []
        loader.batch_sampler.set_epoch(0)
        for batch in loader:
            loss = model(normalize(batch)["pixel_values"], mode="loss", indices=batch["indices"]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            model.end_step(Progress(len(losses), 100))
        assert sum(losses[-5:]) / 5 < self.loss_ratio * losses[0], f"from {losses[0]} to {losses[-5:]}"
        assert (model.memory.sizes() > 0).all()

    def test_clusters_are_found_before_an_epoch(self):
        model = self.model().double()
        model.begin_run(NUM_IMAGES)
        before = model.head.classifier.weight.clone()
        weights = model.begin_epoch(Progress(0, 100, 40), table())
        assert normalized_mutual_information(model.cluster_labels, torch.arange(NUM_IMAGES) % 5) > 0.6
        sizes = model.memory.sizes()
        assert (sizes > 0).all() and weights.shape == (NUM_IMAGES,)
        assert {key: model.epoch_metrics[key] for key in ("clusters_used", "largest_cluster", "smallest_cluster")} == {
            "clusters_used": NUM_CLUSTERS,
            "largest_cluster": sizes.max(),
            "smallest_cluster": sizes.min(),
        }
        assert not torch.equal(model.head.classifier.weight, before)
        assert {id(p) for p in model.redrawn_parameters} == {id(p) for p in model.head.parameters()}

    def test_the_same_seed_gives_the_same_clusters(self):
        states = []
        for _ in range(2):
            model = self.model().double()
            model.begin_run(NUM_IMAGES)
            torch.manual_seed(5)
            model.begin_epoch(Progress(0, 100, 40), table())
            states.append(model.state_dict())
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    def test_an_unreadable_image_changes_nothing_for_the_others(self):
        model = self.model().double()
        model.begin_run(NUM_IMAGES)
        weights = model.begin_epoch(Progress(0, 100, 40), table(unknown=[0, 7]))
        assert model.cluster_labels[[0, 7]].tolist() == [-1, -1] and weights[[0, 7]].tolist() == [0, 0]
        assert (model.cluster_labels >= 0).sum() == NUM_IMAGES - 2 == model.memory.sizes().sum()
        assert (weights > 0).sum() == NUM_IMAGES - 2
        # one that has no cluster has no part in the loss, nor an error
        with_it, without = (
            model.eval()(self.images(batch).double(), mode="loss", indices=torch.arange(1, 1 + batch)).loss
            for batch in (7, 6)
        )
        assert torch.isclose(with_it, without)

    def test_predict(self):
        model = self.model().eval()
        outputs = model(self.images(), mode="predict")
        assert outputs.logits.shape == (BATCH_SIZE, NUM_CLUSTERS)
        assert torch.equal(outputs.cluster_ids, outputs.logits.argmax(dim=1))
        expected = model.clustered(model.project(self.images())) - model.memory.centroids[outputs.cluster_ids]
        assert torch.allclose(outputs.distances, expected.norm(dim=1))

    def test_the_bank_stays_out_of_what_is_shared(self, tmp_path):
        """And a model that was shared, or a checkpoint with a bank, starts a run on any dataset."""
        model = self.model()
        model.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path)
        assert loaded.memory.labels is None and loaded.cluster_labels is None
        assert torch.equal(loaded.memory.centroids, model.memory.centroids)
        loaded.begin_run(NUM_IMAGES + 1)
        assert len(loaded.memory.labels) == NUM_IMAGES + 1
        assert all(name.startswith("memory.") for name in model.training_state)

    def test_a_checkpoint_of_another_dataset(self):
        state = self.model().state_dict()
        model = self.model()
        model.begin_run(NUM_IMAGES + 2)
        with pytest.raises(
            RuntimeError, match=r"memory holds 40 images and this run's 42 images. A run resumes with the dataset"
        ):
            model.load_state_dict(state)
        model.begin_run(NUM_IMAGES)
        model.load_state_dict(state)
        assert torch.equal(model.memory.labels, state["memory.labels"])

    def test_data_that_cannot_work(self):
        model = super().model()
        with pytest.raises(
            ValueError, match="load the dataset without streaming, or take an algorithm .* such as SwAV"
        ):
            model.begin_run(None)
        with pytest.raises(
            ValueError, match=r"4 clusters of at least .* need \d+ readable images, .* has 3: set num_clu"
        ):
            model.begin_run(3)
        with pytest.raises(ValueError, match="memory has no rows yet: call model.begin_run"):
            model(self.images(), mode="loss", **self.loss_inputs(BATCH_SIZE))
        model = self.model()
        for outside in (NUM_IMAGES, -1):
            with pytest.raises(ValueError, match=rf"lie in \[0, 40\), the memory's 40 images; got .*{outside}"):
                model(self.images(), mode="loss", indices=torch.tensor([outside] * BATCH_SIZE))
        with pytest.raises(ValueError, match=r"4 clusters .* dataset has 3"):
            model.begin_run(NUM_IMAGES)
            model.begin_epoch(Progress(0, 100, 40), table(unknown=range(3, NUM_IMAGES)))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_features_that_are_not_finite(self, value):
        model = self.model()
        model.begin_run(NUM_IMAGES)
        bad = table()()
        bad.features[3, 1] = value
        with pytest.raises(ValueError, match="features of 1 of 40 images hold NaN or infinity"):
            model.begin_epoch(Progress(0, 100, 40), lambda extract=None: bad)

    def test_values_that_cannot_work(self):
        with pytest.raises(ValueError, match="num_clusters must be a whole number of at least 2, got 1"):
            self.config(num_clusters=1)
        with pytest.raises(ValueError, match="kmeans_iterations must be a whole number of at least 1"):
            self.config(kmeans_iterations=0)
        with pytest.raises(ValueError, match="class_weight_power must be a number of at least 0"):
            self.config(class_weight_power=-1.0)

    def test_the_loss_of_the_original_is_smaller_by_the_number_of_clusters(self):
        losses = []
        for weighted_mean in (True, False):
            model = self.model(weighted_mean=weighted_mean).eval()
            losses.append(model(self.images(), mode="loss", **self.loss_inputs(BATCH_SIZE)).loss)
        assert torch.isclose(losses[0], NUM_CLUSTERS * losses[1])

    def test_a_batch_of_one_with_batchnorm(self):
        model = self.model(backbone_config=BACKBONES["resnet"]).train()
        with pytest.raises(ValueError, match="needs at least two samples"):
            model(self.images(1), mode="loss", indices=torch.tensor([0]))
