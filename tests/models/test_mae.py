import pytest
import torch
from test_modeling_common import SSLModelTests
from transformers import AutoModel, ViTForImageClassification, ViTModel

from ssl_hub import MAEConfig, MAEForImageClassification, MAEModel
from ssl_hub.modules.masking import patchify
from ssl_hub.modules.position_embeddings import resize_position_table

TINY = {
    "backbone_config": {
        "image_size": 16,
        "patch_size": 4,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    },
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}


class TestMAE(SSLModelTests):
    config_class, model_class, classifier_class = MAEConfig, MAEModel, MAEForImageClassification

    @classmethod
    def config(cls, **overrides):
        return MAEConfig(**TINY, **overrides)

    @classmethod
    def loss_inputs(cls, batch_size):
        mask = torch.ones(batch_size, 16, dtype=torch.bool)
        for row in range(batch_size):
            mask[row, [row % 16, (row + 3) % 16, (row + 7) % 16, (row + 12) % 16]] = False
        return {"bool_masked_pos": mask}

    def test_defaults_are_the_paper(self):
        config = MAEConfig()
        assert (config.mask_kind, config.mask_ratio, config.norm_pix_loss) == ("random", 0.75, True)
        assert config.num_masked_patches(196) == 147
        assert (config.backbone_config.hidden_size, config.backbone_config.layer_norm_eps) == (768, 1e-6)
        with torch.device("meta"):
            num_parameters = sum(p.numel() for p in MAEModel(config).parameters())
        # 111.9 million with the two position tables, which are buffers here
        assert num_parameters == 111_907_840 - 197 * 768 - 197 * 512

    def test_initialisation_is_that_of_the_paper(self):
        config = MAEConfig(backbone_config={"num_hidden_layers": 1}, decoder_num_hidden_layers=1)
        model = MAEModel(config)
        layer, patches = model.backbone.layers[0], model.backbone.embeddings.patch_embeddings.projection
        for weight, fans in (
            (layer.attention.q_proj.weight, 768 + 3 * 768),  # q, k and v are one matrix
            (layer.attention.o_proj.weight, 768 + 768),
            (layer.mlp.fc1.weight, 768 + 3072),
            (patches.weight, 768 + 3 * 16 * 16),
            (model.neck.layers[0].attention.v_proj.weight, 512 + 3 * 512),
        ):
            assert weight.std().item() == pytest.approx((2 / fans) ** 0.5, rel=0.01)
            assert weight.abs().max().item() == pytest.approx((6 / fans) ** 0.5, rel=0.01)
        assert layer.mlp.fc1.bias.std().item() == pytest.approx(1e-6, rel=0.1)
        assert model.backbone.embeddings.cls_token.std().item() == pytest.approx(0.02, rel=0.1)

    def test_features_see_the_whole_image_at_any_size(self):
        model = self.model().eval()
        assert model(torch.randn(2, 3, 16, 16)).last_hidden_state.shape == (2, 17, 32)
        assert model(torch.randn(2, 3, 24, 40)).last_hidden_state.shape == (2, 61, 32)
        with pytest.raises(ValueError, match=r"patch size 4 must divide .* got 18 x 16"):
            model(torch.randn(2, 3, 18, 16))

    def test_pooling(self):
        images = self.one_view()
        for pooling, pool in (("cls", lambda tokens: tokens[:, 0]), ("mean", lambda tokens: tokens[:, 1:].mean(1))):
            outputs = self.model(pooling=pooling).eval()(images)
            assert torch.equal(outputs.pooler_output, pool(outputs.last_hidden_state))

    def test_dropped_patches_are_neither_seen_nor_computed(self):
        model = self.model().eval()
        images, mask = self.one_view(), self.loss_inputs(8)["bool_masked_pos"]
        lengths = []
        model.backbone.layers[0].register_forward_hook(lambda module, args, output: lengths.append(output.shape[1]))
        prediction = model(images, mode="predict", bool_masked_pos=mask)
        assert lengths == [1 + 4]
        noise = torch.randn(8, 16, 3, 4, 4)
        changed = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(8, 16, 3, 4, 4)
        changed = torch.where(mask[:, :, None, None, None], noise, changed)
        changed = changed.reshape(8, 4, 4, 3, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(8, 3, 16, 16)
        visible = torch.arange(16).expand(8, -1)[~mask].reshape(8, 4)
        latent = model.backbone(images, visible_patches=visible).last_hidden_state
        assert torch.equal(latent, model.backbone(changed, visible_patches=visible).last_hidden_state)
        assert torch.equal(prediction.mask, mask)

    def test_loss_counts_removed_patches_only(self):
        model = self.model(norm_pix_loss=False).double().eval()
        images, mask = self.one_view().double(), self.loss_inputs(8)["bool_masked_pos"]
        prediction, *_ = model._reconstruct_patches(images, mask)
        expected = (prediction - patchify(images, 4))[mask].square().mean()
        assert model(images, mode="loss", bool_masked_pos=mask).loss.item() == pytest.approx(expected.item(), rel=1e-6)

    def test_random_mask(self):
        model = self.model(mask_ratio=0.6).eval()
        first = model(self.one_view(), mode="predict").mask
        assert (first.sum(dim=1) == 16 - int(16 * 0.4)).all()
        assert not torch.equal(first, model(self.one_view(), mode="predict").mask)
        torch.manual_seed(5)
        share = torch.stack([model(self.one_view(), mode="predict").mask for _ in range(100)]).float().mean(dim=(0, 1))
        assert (share - 10 / 16).abs().max() < 0.08  # every patch equally often

    @pytest.mark.parametrize(("kind", "cell_size"), [("random", 32), ("aligned", 8), ("blockwise", 32)])
    def test_kinds_of_masks(self, kind, cell_size):
        model = self.model(mask_kind=kind, mask_cell_size=cell_size, mask_ratio=0.5)
        outputs = model(self.one_view(), mode="predict")
        assert (outputs.mask.sum(dim=1) == 8).all() and len(outputs.mask.unique(dim=0)) > 1
        model(self.one_view(), mode="loss").loss.backward()
        if kind == "aligned":
            cells = outputs.mask.view(8, 2, 2, 2, 2).transpose(2, 3).flatten(3)
            assert (cells.all(dim=3) == cells.any(dim=3)).all()

    def test_trains_on_at_another_size(self, tmp_path):
        """The positions of encoder and decoder are interpolated."""
        self.model().save_pretrained(tmp_path)
        model = AutoModel.from_pretrained(tmp_path, image_size=24)
        assert (model.config.image_size, model.config.backbone_config.image_size) == (24, 16)
        images = torch.randn(2, 3, 24, 24)
        model(images, mode="loss").loss.backward()
        outputs = model(images, mode="predict")
        assert outputs.reconstruction.shape == (2, 3, 24, 24) and outputs.mask.sum(dim=1).tolist() == [27, 27]
        table = resize_position_table(model.neck.position_embeddings, (6, 6))
        assert table.shape == (1, 37, 16) and torch.equal(table[:, 0], model.neck.position_embeddings[:, 0])
        encoder = model.backbone.embeddings
        assert torch.equal(
            resize_position_table(encoder.position_embeddings, (6, 8)),
            encoder.interpolate_pos_encoding(torch.zeros(1, 49, 32), 24, 32),
        )
        model.save_pretrained(tmp_path / "again")
        assert AutoModel.from_pretrained(tmp_path / "again").config.image_size == 24
        assert model(torch.randn(2, 3, 16, 32), mode="predict").reconstruction.shape == (2, 3, 16, 32)

    @pytest.mark.parametrize(
        ("target_type", "options"),
        [
            ("hog", {"cell_size": 2, "gaussian_window": 8}),
            ("low_frequency_pixels", {"radius": 4}),
            ("dalle", {"size": 16, "network": {"hidden_size": 8, "num_blocks_per_group": 1}}),
        ],
    )
    def test_other_targets(self, target_type, options):
        model = self.model(target_type=target_type, target_options=options, target_random=True)
        images, inputs = self.one_view(), self.loss_inputs(8)
        outputs = model(images, mode="loss", **inputs)
        outputs.loss.backward()
        prediction = model(images, mode="predict", **inputs)
        if target_type == "dalle":
            assert prediction.prediction.shape == prediction.target.shape == (8, 12)
            assert torch.equal(prediction.accuracy, (prediction.prediction == prediction.target).float().mean(dim=1))
        else:
            expected = (prediction.prediction - prediction.target).square().mean()
            assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-5)

    def test_prediction_is_in_pixels(self):
        """A model that predicts its normalised target exactly reconstructs the image."""
        for norm_pix_loss in (True, False):
            model = self.model(norm_pix_loss=norm_pix_loss, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])
            image = torch.rand(2, 3, 16, 16)
            mean, std = (torch.tensor(x)[:, None, None] for x in (model.config.image_mean, model.config.image_std))
            patches = patchify((image - mean) / std, 4)
            patch_mean, patch_std = model.head.patch_statistics(patches)
            model.neck.forward = lambda *_, target=(patches - patch_mean) / patch_std: target
            outputs = model((image - mean) / std, mode="predict")
            assert torch.allclose(outputs.reconstruction, image, atol=1e-5)
            pixel_mask = outputs.mask.reshape(2, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
            assert torch.allclose(outputs.masked_image, torch.where(pixel_mask, 0.5, image), atol=1e-6)

    def test_attentions_with_the_eager_implementation(self):
        model = self.model().eval()
        model.set_attn_implementation("eager")
        attentions = model(self.one_view(), output_attentions=True).attentions
        assert [tuple(a.shape) for a in attentions] == [(8, 4, 17, 17)] * 2
        assert model.neck.config._attn_implementation == "eager"

    def test_eager_equals_sdpa(self):
        images, inputs = self.one_view(), self.loss_inputs(8)
        sdpa = self.model().eval()
        assert sdpa.config._attn_implementation == "sdpa"
        eager = self.model().eval()
        eager.set_attn_implementation("eager")
        assert sdpa(images, mode="loss", **inputs).loss.item() == pytest.approx(
            eager(images, mode="loss", **inputs).loss.item(), rel=1e-5
        )

    def test_backbone_as_plain_vit_and_its_classifier(self, tmp_path):
        model = self.model().eval()
        model.backbone.save_pretrained(tmp_path)
        assert ViTModel.from_pretrained(tmp_path, add_pooling_layer=False).config.architectures == ["ViTModel"]
        classifier = ViTForImageClassification.from_pretrained(tmp_path).eval()
        tokens = classifier.vit(self.one_view()).last_hidden_state
        assert torch.equal(tokens, model(self.one_view()).last_hidden_state)

    def test_position_tables_are_fixed(self, tmp_path):
        model = self.model()
        model.save_pretrained(tmp_path)
        for each in (model, AutoModel.from_pretrained(tmp_path)):
            assert not [n for n, _ in each.named_parameters() if "position_embeddings" in n]
            assert each.backbone.embeddings.position_embeddings[0, 1:].std() > 0.5

    def test_bf16_weights(self):
        model = self.model().to(torch.bfloat16)
        outputs = model(self.one_view().bfloat16(), mode="loss")
        outputs.loss.backward()
        assert torch.isfinite(outputs.loss)

    @pytest.mark.parametrize("mask_ratio", [0.0, 1.0, -0.5, 1.5, 0.99])
    def test_mask_ratio_outside_its_range(self, mask_ratio):
        with pytest.raises(ValueError, match=f"mask_ratio must .*got {mask_ratio}"):
            self.config(mask_ratio=mask_ratio)

    def test_configurations_that_cannot_work(self):
        with pytest.raises(ValueError, match=r"the patch size divides.* got 18 and 4"):
            MAEConfig(backbone_config={"image_size": 18, "patch_size": 4})
        with pytest.raises(ValueError, match=r"MAE masks patches.* must be 'vit'; got 'resnet'"):
            MAEConfig(backbone_config={"model_type": "resnet"})
        with pytest.raises(ValueError, match="decoder_num_attention_heads; got 512 and 7"):
            MAEConfig(decoder_num_attention_heads=7)
        with pytest.raises(ValueError, match="image_mean and image_std need 3 values"):
            MAEConfig(image_mean=[0.5])

    def test_masks_that_cannot_work(self):
        model, images = self.model(), self.one_view(2)
        with pytest.raises(ValueError, match=r"shape \(2, 16\)"):
            model(images, mode="loss", bool_masked_pos=torch.ones(2, 9, dtype=torch.bool))
        uneven = torch.zeros(2, 16, dtype=torch.bool)
        uneven[0, :8] = uneven[1, :9] = True
        with pytest.raises(ValueError, match=r"same number of patches .* got \[8, 9\]"):
            model(images, mode="loss", bool_masked_pos=uneven)
        with pytest.raises(ValueError, match=r"multiples of the patch size 4; got 18 x 16"):
            model(torch.zeros(2, 3, 18, 16), mode="loss")
