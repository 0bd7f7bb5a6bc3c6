import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_modeling_common import BATCH_SIZE, SSLModelTests
from transformers import AutoModel, BeitModel, FlavaImageCodebook, FlavaImageCodebookConfig

from ssl_hub import CAEConfig, CAEForImageClassification, CAEModel
from ssl_hub.conversion.mmselfsup import convert_config
from ssl_hub.conversion.sources import load_foreign_checkpoint
from ssl_hub.lifecycle import Progress

TINY = {
    "backbone_config": {
        "image_size": 16,
        "patch_size": 4,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    },
    "mask_ratio": 0.3,
    "regressor_num_hidden_layers": 1,
    "decoder_num_hidden_layers": 1,
    "target_random": True,
    "target_options": {"size": 16, "network": {"hidden_size": 8, "num_blocks_per_group": 1}},
}


class TestCAE(SSLModelTests):
    config_class, model_class, classifier_class = CAEConfig, CAEModel, CAEForImageClassification
    training_steps = 60

    @classmethod
    def config(cls, **overrides):
        return CAEConfig(**{**TINY, **overrides})

    def model(self, **overrides):
        model = super().model(**overrides)
        if model.config.target_random:
            model.begin_run(20)  # what is compiled cannot load a network
        return model

    @classmethod
    def loss_inputs(cls, batch_size):
        mask = torch.zeros(batch_size, 16, dtype=torch.bool)
        for row in range(batch_size):
            mask[row, [(row + shift) % 16 for shift in (0, 3, 4, 7, 12)]] = True
        targets = torch.rand(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(2))
        return {"bool_masked_pos": mask, "target_pixel_values": 0.8 * targets + 0.1}

    def test_defaults_are_the_published_setting(self):
        config = CAEConfig()
        assert (config.mask_kind, config.num_masked_patches(196), config.alignment_weight) == ("blockwise", 75, 2.0)
        assert (config.neck_num_attention_heads, config.neck_intermediate_size) == (12, 3072)
        with torch.device("meta"):
            model = CAEModel(config)
        assert model.neck.predict_targets.out_features == 8192
        # patch projection, class token, twelve layers with their scales, norm: a ViT-B/16 without the keys' biases
        num_parameters = sum(p.numel() for p in model.backbone.parameters())
        assert num_parameters == 768 * (3 * 256 + 1) + 768 + 12 * (7_087_872 - 768 + 2 * 768) + 2 * 768

    def test_initialisation_is_that_of_the_original(self):
        config = CAEConfig(
            backbone_config={"num_hidden_layers": 1}, regressor_num_hidden_layers=1, decoder_num_hidden_layers=1
        )
        model = CAEModel(config)
        layer, regressor = model.backbone.layers[0], model.neck.regressor[0]
        for weight, fans in (
            (layer.attention.q_proj.weight, 768 + 3 * 768),  # q, k and v are one matrix
            (model.neck.decoder[0].attention.v_proj.weight, 768 + 3 * 768),
            (regressor.attention.q_proj.weight, 768 + 768),  # here they are not
            (layer.mlp.fc1.weight, 768 + 3072),
        ):
            assert weight.std().item() == pytest.approx((2 / fans) ** 0.5, rel=0.01)
        for tensor in (
            model.backbone.embeddings.cls_token,
            model.backbone.embeddings.patch_embeddings.projection.weight,
            model.neck.mask_token,
            model.neck.predict_targets.weight,
        ):
            assert tensor.std().item() == pytest.approx(0.02, rel=0.1)
        for scale in (layer.lambda_1, regressor.lambda_2, model.neck.decoder[0].lambda_1):
            assert torch.equal(scale, torch.full_like(scale, 0.1))

    def test_dropped_patches_are_neither_seen_nor_computed(self):
        model, images = self.model().eval(), self.one_view()
        inputs = self.loss_inputs(BATCH_SIZE)
        lengths = {}
        for name in ("backbone", "teacher.backbone"):
            layer = model.get_submodule(name).layers[0]
            layer.register_forward_hook(lambda module, args, output, name=name: lengths.update({name: output.shape[1]}))
        model(images, mode="loss", **inputs)
        assert lengths == {"backbone": 1 + 11, "teacher.backbone": 1 + 5}
        hidden = inputs["bool_masked_pos"].reshape(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
        changed = torch.where(hidden, torch.randn_like(images), images)
        predictions = [model(x, mode="predict", **inputs).prediction for x in (images, changed)]
        assert torch.equal(*predictions)

    def test_any_number_of_masked_patches(self):
        model = self.model()
        for num_masked in (1, 9, 15):
            mask = torch.zeros(2, 16, dtype=torch.bool)
            mask[:, :num_masked] = True
            outputs = model(self.one_view(2), mode="predict", bool_masked_pos=mask)
            assert outputs.prediction.shape == (2, num_masked)

    def test_masks_drawn_on_the_device(self):
        for kind in ("blockwise", "random"):
            masks = [self.model(mask_kind=kind)(self.one_view(), mode="predict").mask for _ in range(2)]
            assert all((mask.sum(dim=1) == 5).all() for mask in masks)
            torch.manual_seed(1)
            assert not torch.equal(masks[0], self.model(mask_kind=kind)(self.one_view(4), mode="predict").mask[:4])

    def test_prediction_is_tokens(self):
        model, inputs = self.model().eval(), self.loss_inputs(BATCH_SIZE)
        outputs = model(self.one_view(), mode="predict", **inputs)
        assert outputs.prediction.shape == outputs.target.shape == (BATCH_SIZE, 5)
        assert not outputs.target.is_floating_point() and outputs.target.max() < 16
        assert torch.equal(outputs.accuracy, (outputs.prediction == outputs.target).float().mean(dim=1))
        assert torch.equal(outputs.mask, inputs["bool_masked_pos"])
        tokens = model.target_generator(self.one_view(), inputs["target_pixel_values"])
        assert torch.equal(outputs.target.flatten(), tokens[outputs.mask])

    def test_images_of_another_size(self):
        """Positions are interpolated, and the share of removed patches stays."""
        images = torch.randn(2, 3, 24, 32)
        outputs = self.model()(images, mode="predict")
        assert outputs.mask.shape == (2, 48) and outputs.prediction.shape == (2, 15)
        assert torch.isfinite(self.model()(images, mode="loss").loss)

    def test_teacher_follows_with_its_momentum(self):
        model = self.model(teacher_momentum=0.75)
        before = model.teacher.backbone.layernorm.weight.clone()
        model.backbone.layernorm.weight.data += 1.0
        model.end_step(Progress(1, 2))
        assert torch.allclose(model.teacher.backbone.layernorm.weight, before + 0.25)

    def test_target_network_is_no_part_of_the_model(self, tmp_path):
        model = self.model()
        network = model.target_generator._network
        assert isinstance(network, FlavaImageCodebook) and not network.training
        assert not any(p.requires_grad for p in network.parameters())
        assert not any(module is network for module in model.modules())
        assert not any("target" in name and "predict_targets" not in name for name in model.state_dict())
        assert not any(a is b for a in network.parameters() for b in model.parameters())

    @pytest.mark.parametrize(
        ("target_type", "options", "size"),
        [
            ("pixels", {}, 48),
            ("normalized_pixels", {}, 48),
            ("low_frequency_pixels", {"radius": 4}, 48),
            ("hog", {"cell_size": 2, "gaussian_window": 8}, 108),
            (
                "clip",
                {"size": 12, "network": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}},
                12,
            ),
            (
                "features",
                {
                    "size": 16,
                    "network": {
                        "model_type": "vit",
                        "hidden_size": 16,
                        "num_hidden_layers": 1,
                        "num_attention_heads": 2,
                        "intermediate_size": 16,
                    },
                },
                16,
            ),
        ],
    )
    def test_any_target(self, target_type, options, size):
        model = self.model(target_type=target_type, target_options=options).train()
        outputs = model(self.one_view(), mode="loss")
        outputs.loss.backward()
        assert torch.isfinite(outputs.loss)
        prediction = model(self.one_view(), mode="predict")
        assert prediction.prediction.shape == prediction.target.shape == (BATCH_SIZE, 5, size)
        assert prediction.accuracy is None

    def test_attentions_with_the_eager_implementation(self):
        images, inputs = self.one_view(), self.loss_inputs(BATCH_SIZE)
        sdpa = self.model().eval()
        assert sdpa.config._attn_implementation == "sdpa"
        model = self.model().eval()
        model.set_attn_implementation("eager")
        assert model.neck.config._attn_implementation == "eager"
        assert [tuple(a.shape) for a in model(images, output_attentions=True).attentions] == [(8, 4, 17, 17)] * 2
        losses = [m(images, mode="loss", **inputs).loss.item() for m in (model, sdpa)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)

    def test_backbone_as_plain_beit(self, tmp_path):
        model = self.model().eval()
        model.backbone.save_pretrained(tmp_path)
        for plain_class in (AutoModel, BeitModel):
            plain, info = plain_class.from_pretrained(tmp_path, output_loading_info=True)
            assert type(plain) is BeitModel and plain.config.architectures == ["BeitModel"]
            assert not info["missing_keys"] and not info["unexpected_keys"]
            tokens = plain.eval()(self.one_view()).last_hidden_state
            assert torch.equal(tokens, model(self.one_view()).last_hidden_state)
        # under the names that a plain model saves
        plain.save_pretrained(tmp_path / "again")
        ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "again"))
        assert ours.keys() == theirs.keys()

    def test_checkpoint_of_mmselfsup(self, tmp_path):
        case = Path(__file__).parents[1] / "fixtures" / "reference" / "cae_a"
        tensors = load_file(case.with_suffix(".safetensors"))
        state = {k.removeprefix("state/"): tensor for k, tensor in tensors.items() if k.startswith("state/")}
        torch.save({"state_dict": state}, tmp_path / "cae.pth")
        config = convert_config(json.loads(case.with_suffix(".json").read_text())["mmselfsup_config"])
        model = CAEModel(config)
        load_foreign_checkpoint(model, tmp_path / "cae.pth", "mmselfsup")
        table = model.backbone.embeddings.position_embeddings
        assert torch.equal(table, state["backbone.pos_embed"])
        without_teacher = {key: tensor for key, tensor in state.items() if not key.startswith("teacher.")}
        torch.save(without_teacher, tmp_path / "cae.pth")
        load_foreign_checkpoint(model, tmp_path / "cae.pth", "mmselfsup", new=("teacher.",))
        assert torch.equal(model.teacher.backbone.layernorm.weight, model.backbone.layernorm.weight)

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

    def test_configurations_that_cannot_work(self):
        with pytest.raises(ValueError, match=r"the patch size divides.* got 18 and 4"):
            CAEConfig(backbone_config={"image_size": 18, "patch_size": 4})
        with pytest.raises(ValueError, match=r"must be 'beit'; got 'vit'"):
            CAEConfig(backbone_config={"model_type": "vit"})
        with pytest.raises(ValueError, match="needs use_relative_position_bias False"):
            CAEConfig(backbone_config={"use_relative_position_bias": True})
        with pytest.raises(ValueError, match="got 768 and 7 heads"):
            CAEConfig(neck_num_attention_heads=7)
        with pytest.raises(ValueError, match=r"teacher_momentum must be a number in \[0, 1\]"):
            CAEConfig(teacher_momentum=1.5)
        with pytest.raises(ValueError, match="target_type must be one of .* got 'dallee', which is near 'dalle'"):
            CAEConfig(target_type="dallee")

    def test_masks_that_cannot_work(self):
        model, images = self.model(), self.one_view(2)
        with pytest.raises(ValueError, match=r"shape \(2, 16\)"):
            model(images, mode="loss", bool_masked_pos=torch.ones(2, 9, dtype=torch.bool))
        uneven = torch.zeros(2, 16, dtype=torch.bool)
        uneven[0, :8] = uneven[1, :9] = True
        with pytest.raises(ValueError, match=r"same number of patches .* got \[8, 9\]"):
            model(images, mode="loss", bool_masked_pos=uneven)
        for value in (True, False):
            with pytest.raises(ValueError, match="at least one and not all 16"):
                model(images, mode="loss", bool_masked_pos=torch.full((2, 16), value))

    def test_a_grid_of_targets_that_is_not_that_of_the_patches(self):
        inputs = {"target_pixel_values": torch.rand(2, 3, 40, 40)}
        with pytest.raises(ValueError, match="makes 5 x 5 targets of images of 40 x 40 pixels.*has 4 x 4 patches"):
            self.model()(self.one_view(2), mode="loss", **inputs)

    def test_a_run_without_its_network(self, tmp_path):
        missing = tmp_path / "codebook"
        model = self.model(target_random=False, target_name_or_path=str(missing))
        with pytest.raises(
            OSError, match=r"codebook, is no folder with a model here .*hf download .*target_name_or_path"
        ):
            model.begin_run(20)
        FlavaImageCodebook(
            FlavaImageCodebookConfig(hidden_size=8, num_blocks_per_group=1, vocab_size=16)
        ).save_pretrained(missing)
        model.begin_run(20)
        assert torch.isfinite(model(self.one_view(), mode="loss").loss)
