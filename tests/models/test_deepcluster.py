import pytest
import torch
from clustering_common import NUM_CLUSTERS, NUM_IMAGES, ClusteringTests, table
from joint_embedding_common import BACKBONES
from test_modeling_common import BATCH_SIZE
from transformers import AutoModel, AutoModelForImageClassification, ResNetConfig, ResNetModel

from ssl_hub import DeepClusterConfig, DeepClusterForImageClassification, DeepClusterModel
from ssl_hub.lifecycle import Progress


class TestDeepCluster(ClusteringTests):
    config_class, model_class, classifier_class = (
        DeepClusterConfig,
        DeepClusterModel,
        DeepClusterForImageClassification,
    )
    tiny = {"num_clusters": NUM_CLUSTERS, "pca_size": 4}
    loss_ratio = 0.93

    def test_images_are_drawn_evenly_from_the_clusters(self):
        model = self.model().double()
        weights = model.begin_epoch(Progress(0, 100, 40), table())
        shares = torch.zeros(NUM_CLUSTERS).index_add_(0, model.cluster_labels, weights.float())
        assert torch.allclose(shares, torch.ones(NUM_CLUSTERS))
        assert self.model(uniform_sampling=False).begin_epoch(Progress(0, 100, 40), table()) is None

    def test_every_epoch_clusters_anew(self):
        model = self.model().double()
        model.begin_run(NUM_IMAGES)
        model.begin_epoch(Progress(0, 100, 40), table())
        assert "nmi_to_last_clusters" not in model.epoch_metrics
        head, labels = model.head.classifier.weight.clone(), model.cluster_labels
        model.begin_epoch(Progress(40, 100, 40), table())
        assert model.epoch_metrics["nmi_to_last_clusters"] > 0.5
        assert not torch.equal(model.head.classifier.weight, head)
        model.begin_epoch(Progress(80, 100, 40), table(seed=9))
        assert not torch.equal(model.cluster_labels, labels)

    def test_distances_are_those_of_the_clustering(self):
        model = self.model().double()
        model.begin_epoch(Progress(0, 100, 40), table())
        features = table()().features
        distances = torch.cdist(model.clustered(features), model.memory.centroids)
        assert torch.equal(distances.argmin(dim=1), model.cluster_labels)

    def test_class_weights(self):
        model = self.model(class_weight_power=0.5).double()
        model.begin_epoch(Progress(0, 100, 40), table())
        expected = model.memory.sizes().double() ** -0.5
        assert torch.allclose(model.memory.class_weights, expected / expected.sum())

    def test_no_more_components_than_features(self):
        assert self.model(pca_size=256).memory.projection.shape == (32, 32)

    # With Sobel gradients

    SOBEL = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_channels=2)

    def test_sobel(self, tmp_path):
        model = self.model(sobel=True, backbone_config=self.SOBEL).eval()
        ramp = torch.arange(16.0).expand(1, 3, 16, 16)
        horizontal, vertical = model.sobel(ramp)[0]
        assert torch.allclose(horizontal[1:-1, 1:-1], torch.tensor(-8.0))
        assert torch.allclose(vertical[1:-1, 1:-1], torch.tensor(0.0), atol=1e-5)
        model(self.images(), mode="loss", **self.loss_inputs(BATCH_SIZE)).loss.backward()
        model.save_pretrained(tmp_path / "model")
        model.backbone.save_pretrained(tmp_path / "backbone")
        features = model(self.images()).pooler_output
        loaded = AutoModel.from_pretrained(tmp_path / "model")
        assert torch.equal(loaded(self.images()).pooler_output, features)
        classifier = AutoModelForImageClassification.from_pretrained(tmp_path / "model", num_labels=3)
        assert torch.equal(classifier.extract_features(self.images()).pooler_output, features)
        fresh = AutoModelForImageClassification.from_config(model.config)
        assert torch.equal(fresh.sobel.gradients, model.sobel.gradients)
        plain = AutoModel.from_pretrained(tmp_path / "backbone")
        assert type(plain) is ResNetModel
        assert torch.equal(plain(model.sobel(self.images())).pooler_output.flatten(1), features)
        with pytest.raises(ValueError, match=r"\(batch_size, 3, height, width\), got \(2, 2, 16, 16\)"):
            model(torch.zeros(2, 2, 16, 16))

    def test_sobel_needs_two_channels(self):
        assert DeepClusterConfig(sobel=True).backbone_config.num_channels == 2
        assert DeepClusterConfig(sobel=True, backbone_config={"model_type": "resnet"}).backbone_config.num_channels == 2
        with pytest.raises(ValueError, match=r"set backbone_config.num_channels to 2; got 3"):
            DeepClusterConfig(sobel=True, backbone_config=BACKBONES["resnet"])
