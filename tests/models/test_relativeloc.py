import pytest
import torch
from joint_embedding_common import AnyBackboneTests
from test_modeling_common import BATCH_SIZE

from ssl_hub import RelativeLocConfig, RelativeLocForImageClassification, RelativeLocModel
from ssl_hub.models.relativeloc.modeling_relativeloc import cut_patches
from ssl_hub.training.arguments import PretrainingArguments
from ssl_hub.training.optimization import parameter_groups


class TestRelativeLoc(AnyBackboneTests):
    config_class, model_class, classifier_class = (
        RelativeLocConfig,
        RelativeLocModel,
        RelativeLocForImageClassification,
    )
    views = ({"kind": "patches", "size": 16, "jitter": 2, "resize": 54},)
    tiny = {"projection_size": 32, "dropout": 0.0}
    learning_rate = 3e-3

    @classmethod
    def images(cls, batch_size=BATCH_SIZE):
        return torch.randn(batch_size, 9, 3, 16, 16, generator=torch.Generator().manual_seed(1))

    def one_view(self, batch_size=BATCH_SIZE):
        return self.images(batch_size)[:, 0]

    def test_pairs_are_a_patch_and_the_centre_of_its_image(self):
        model = self.model().eval()
        patches, pairs = self.images(2), []
        model.neck.register_forward_pre_hook(lambda module, args: pairs.append(args[0]))
        outputs = model(patches, mode="loss")
        features = model(patches.flatten(0, 1)).pooler_output.unflatten(0, (2, 9))
        others = features[:, [0, 1, 2, 3, 5, 6, 7, 8]].flatten(0, 1)
        centers = features[:, 4].repeat_interleave(8, dim=0)
        assert torch.allclose(pairs[0], torch.cat([others, centers], dim=1), atol=1e-6)
        probabilities = model(patches, mode="predict").probabilities
        right = probabilities.diagonal(dim1=1, dim2=2)
        assert outputs.loss.item() == pytest.approx(-right.log().mean().item(), rel=1e-5)

    def test_a_centre_that_runs_once_counts_as_one_that_is_repeated(self):
        """With BatchNorm; the original repeats it."""
        model = (
            self.model(backbone_config={"model_type": "resnet", "depths": [1], "hidden_sizes": [8]}).double().train()
        )
        patches = self.images(4).double()
        others, centers = patches[:, [0, 1, 2, 3, 5, 6, 7, 8]].flatten(0, 1), patches[:, 4]
        gradients = []
        for each in (centers, centers.repeat_interleave(8, dim=0)):
            model.zero_grad()
            model.compare(others, each).logsumexp(dim=1).sum().backward()
            gradients.append([parameter.grad for parameter in model.parameters()])
        for once, repeated in zip(*gradients, strict=True):
            assert (once - repeated).norm() <= 1e-9 * repeated.norm() + 1e-12

    def test_dropout_in_training_only(self):
        model = self.model(dropout=0.5)
        losses = [model.train()(self.images(), mode="loss").loss.item() for _ in range(2)]
        assert losses[0] != losses[1]
        losses = [model.eval()(self.images(), mode="loss").loss.item() for _ in range(2)]
        assert losses[0] == losses[1]
        neck, features = model.neck.train(), torch.randn(8, 64)
        dropped = neck(features)
        neck.dropout.eval()
        assert torch.allclose(dropped, torch.where(dropped == 0, 0.0, 2 * neck(features)))

    def test_whole_images_are_cut_column_by_column(self):
        rows, columns = torch.arange(24.0)[:, None].expand(24, 24), torch.arange(24.0).expand(24, 24)
        patches = cut_patches(torch.stack([rows, columns])[None])
        assert patches.shape == (1, 9, 2, 6, 6)
        corners = patches[0, :, :, 0, 0].tolist()
        assert corners == [[8 * row + 1, 8 * column + 1] for column in range(3) for row in range(3)]
        model = self.model().eval()
        images = torch.randn(2, 3, 64, 64)
        outputs = model(images, mode="predict")
        assert outputs.direction.shape == (2, 8)
        expected = model(cut_patches(images), mode="predict").probabilities
        assert torch.equal(outputs.probabilities, expected)

    def test_neck_and_head_decay_five_times_as_much(self):
        args = PretrainingArguments("out", optim="sgd", weight_decay=1e-4, decay_norm_and_bias=True)
        model = self.model()
        groups = parameter_groups(model, args, learning_rate=0.2)
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            assert decay[id(parameter)] == pytest.approx(1e-4 if name.startswith("backbone.") else 5e-4), name

    def test_initialisation(self):
        model = self.model(projection_size=512)
        assert model.neck.fc.weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert model.head.classifier.weight.std().item() == pytest.approx(0.005, rel=0.05)
        assert not model.neck.fc.bias.any() and not model.head.classifier.bias.any()
        assert model.neck.bn.momentum == 0.003

    def test_patches_that_cannot_work(self):
        model = self.model().train()
        for shape in ((2, 3, 16, 16), (2, 8, 3, 16, 16), (2, 9, 1, 16, 16)):
            with pytest.raises(
                ValueError, match=r"compares 9 patches .*\(batch_size, 9, 3, height, width\), got .*patches"
            ):
                model(torch.zeros(shape), mode="loss")
        with pytest.raises(ValueError, match=r"\(batch_size, 9, 3, height, width\), got \(2, 4, 3, 16, 16\)"):
            model(torch.zeros(2, 4, 3, 16, 16), mode="predict")
        with pytest.raises(ValueError, match="images of 2 x 16 pixels are smaller than the grid of 3 x 3 patches"):
            model(torch.zeros(1, 3, 2, 16), mode="predict")
        with pytest.raises(ValueError, match="needs at least two samples"):
            model(self.images(1), mode="loss")

    def test_values_that_cannot_work(self):
        with pytest.raises(ValueError, match=r"dropout must be a number in \[0, 1\), got 1"):
            self.config(dropout=1.0)
        with pytest.raises(ValueError, match="projection_size must be a whole number of at least 1, got 0"):
            self.config(projection_size=0)
