"""What every joint-embedding algorithm must do besides what every algorithm must."""

import pytest
import torch
from test_modeling_common import BATCH_SIZE, SSLModelTests
from transformers import AutoModel, ConvNextConfig, SwinConfig, TimmWrapperConfig, ViTConfig

from ssl_hub.modules.configuration_cifar_resnet import CifarResNetConfig

VIT = {
    "model_type": "vit",
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-6,
}
BACKBONES = {
    "resnet": CifarResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "vit": ViTConfig(**{key: value for key, value in VIT.items() if key != "model_type"}),
    "swin": SwinConfig(image_size=16, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=2),
    "convnext": ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2),
    "timm": TimmWrapperConfig(architecture="resnet18", model_args={"channels": (8, 8, 16, 16)}, do_pooling=True),
}


class AnyBackboneTests(SSLModelTests):
    """Of an algorithm that takes any backbone."""

    # Fields besides the backbone that make the algorithm tiny.
    tiny: dict = {}

    @classmethod
    def config(cls, **overrides):
        return cls.config_class(**{"backbone_config": dict(VIT), "image_size": 16, **cls.tiny, **overrides})

    @pytest.mark.parametrize("name", list(BACKBONES))
    def test_any_backbone(self, name, tmp_path):
        model = self.model(backbone_config=BACKBONES[name]).train()
        outputs = model(self.images(), mode="loss", **self.loss_inputs(BATCH_SIZE))
        outputs.loss.backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert torch.isfinite(outputs.loss) and without == []
        model.save_pretrained(tmp_path)
        loaded, images = AutoModel.from_pretrained(tmp_path), self.one_view()
        assert torch.equal(loaded(images).pooler_output, model.eval()(images).pooler_output)


class JointEmbeddingTests(AnyBackboneTests):
    learning_rate = 3e-3
    views = ({"count": 2, "size": 16, "scale": [0.4, 1.0]},)
    tiny = {"projection_hidden_size": 32, "projection_size": 16}

    def test_predict_gives_unit_vectors(self):
        projection = self.model().eval()(self.one_view(), mode="predict").projection
        assert projection.shape == (BATCH_SIZE, self.tiny["projection_size"])
        assert torch.allclose(projection.norm(dim=1), torch.ones(BATCH_SIZE))

    def test_views_that_cannot_work(self):
        model = self.model()
        with pytest.raises(ValueError, match=f"needs {model.num_views} views .*got one tensor"):
            model(self.one_view(), mode="loss")
        with pytest.raises(ValueError, match=f"needs {model.num_views} views .*got a list of 1"):
            model([self.one_view()], mode="loss")
        with pytest.raises(ValueError, match="must match in batch size"):
            model([*self.images()[:-1], self.images()[-1][1:]], mode="loss")

    def test_a_batch_of_one_with_batchnorm(self):
        model = self.model(backbone_config=BACKBONES["resnet"]).train()
        with pytest.raises(ValueError, match="needs at least two samples"):
            model([view[:1] for view in self.images()], mode="loss")

    def test_chunks_give_the_exact_gradient(self):
        """The backbone here has no BatchNorm; that of the neck is put in eval mode."""
        gradients = []
        for chunk_size in (None, 3):
            model = self.model().double().train()
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm1d):
                    module.eval()
            model.loss_chunk_size = chunk_size
            outputs = model([view.double() for view in self.images()], mode="loss", **self.loss_inputs(BATCH_SIZE))
            outputs.loss.backward()
            gradients.append([outputs.loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        for plain, chunked in zip(*gradients, strict=True):
            assert (plain - chunked).norm() <= 1e-5 * plain.norm() + 1e-8
