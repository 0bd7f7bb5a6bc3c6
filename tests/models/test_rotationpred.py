import pytest
import torch
from joint_embedding_common import AnyBackboneTests
from test_modeling_common import BATCH_SIZE

from ssl_hub import RotationPredConfig, RotationPredForImageClassification, RotationPredModel
from ssl_hub.models.rotationpred.modeling_rotationpred import rotate


class TestRotationPred(AnyBackboneTests):
    config_class, model_class, classifier_class = (
        RotationPredConfig,
        RotationPredModel,
        RotationPredForImageClassification,
    )

    def test_images_turn_clockwise(self):
        image = torch.arange(4.0).reshape(1, 1, 2, 2)  # 0 1 above 2 3
        expected = [[0, 1, 2, 3], [2, 0, 3, 1], [3, 2, 1, 0], [1, 3, 0, 2]]
        assert rotate(image).flatten(1).tolist() == expected
        images = self.images()
        assert torch.equal(rotate(images)[4:8], rotate(images[1:2]))

    def test_loss_is_the_cross_entropy_of_four_rotations(self):
        model = self.model().eval()
        outputs = model(self.images(), mode="loss")
        probabilities = model(rotate(self.images()), mode="predict").probabilities.reshape(BATCH_SIZE, 4, 4)
        right = probabilities.diagonal(dim1=1, dim2=2)
        assert outputs.loss.item() == pytest.approx(-right.log().mean().item(), rel=1e-5)
        accuracy = (probabilities.argmax(dim=2) == torch.arange(4)).double().mean()
        assert outputs.losses["accuracy"].item() == pytest.approx(accuracy.item())

    def test_predict_gives_the_angle(self):
        model = self.model().eval()
        with torch.no_grad():
            model.head.classifier.weight.zero_()
            model.head.classifier.bias.copy_(torch.tensor([0.0, 1.0, 3.0, 2.0]))
        outputs = model(torch.randn(2, 3, 16, 24), mode="predict")  # need not be square
        assert outputs.angle.tolist() == [180, 180]
        assert torch.allclose(outputs.probabilities.sum(dim=1), torch.ones(2))

    def test_initialisation(self):
        model = self.model(backbone_config={"model_type": "resnet"})
        assert model.head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert not model.head.classifier.bias.any()

    def test_images_that_are_not_square(self):
        with pytest.raises(ValueError, match="turns square images by quarters; got 16 x 24 pixels: crop them"):
            self.model()(torch.zeros(2, 3, 16, 24), mode="loss")
        with pytest.raises(ValueError, match=r"\(batch_size, 3, height, width\), got \(2, 9, 3, 16, 16\)"):
            self.model()(torch.zeros(2, 9, 3, 16, 16), mode="loss")
