import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    FlavaImageCodebook,
    FlavaImageCodebookConfig,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from ssl_hub.conversion.microsoft import convert_tokenizer
from ssl_hub.modules.masking import blockwise_patch_mask, patchify
from ssl_hub.modules.target_config import MaskedTargetConfig
from ssl_hub.modules.target_generators import build_target_generator
from ssl_hub.modules.target_generators.hog import hog

VIT = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def generator(target_type, patch_size=8, **fields):
    backbone_config = {"model_type": "vit", "image_size": 32, "patch_size": 8}
    fields = {"backbone_config": backbone_config, "target_type": target_type, **fields}
    return build_target_generator(MaskedTargetConfig(**fields), patch_size)


def images(size=32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_pixels():
    assert torch.equal(generator("pixels")(images()), patchify(images(), 8))
    normalized = generator("normalized_pixels")(images())
    assert torch.allclose(normalized.mean(dim=-1), torch.zeros(2, 16), atol=1e-5)
    assert torch.allclose(normalized.var(dim=-1), torch.ones(2, 16), atol=1e-3)


def test_low_frequency_pixels():
    """A slow wave stays, a fast one goes."""
    x = torch.arange(32) / 32 * 2 * torch.pi
    slow, fast = (0.5 + 0.4 * torch.sin(periods * x).expand(3, 32, 32)[None] for periods in (2, 12))
    targets = generator("low_frequency_pixels", target_options={"radius": 6}, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    assert torch.allclose(targets(slow), patchify(slow, 8), atol=1e-5)
    assert torch.allclose(targets(fast), torch.full((1, 16, 192), 0.5), atol=1e-5)
    everything = generator("low_frequency_pixels", target_options={"radius": 100})
    picture = images().sigmoid()
    assert torch.allclose(everything(picture), patchify(picture, 8), atol=1e-4)


def test_hog_tells_orientations_apart():
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    across, down = (
        hog(x, num_bins=9, cell_size=8, gaussian_window=0)[0, 0, :, 1, 1] for x in (ramp, ramp.transpose(2, 3))
    )
    assert across.max() == down.max() == 1 and across.argmax() != down.argmax()
    opposite = hog(-ramp, num_bins=9, cell_size=8, gaussian_window=0)[0, 0, :, 1, 1]
    assert torch.equal(across, opposite)
    assert generator("hog", target_options={"cell_size": 4})(images()).shape == (2, 16, 3 * 9 * 4)


@pytest.mark.parametrize("target_type", ["pixels", "normalized_pixels", "low_frequency_pixels"])
def test_pixels_that_are_predicted_right_are_the_picture(target_type):
    options = {"radius": 100} if "frequency" in target_type else {}
    targets = generator(target_type, target_options=options, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])
    picture = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(x)[:, None, None] for x in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    pixel_values = (picture - mean) / std
    assert torch.allclose(targets.render(targets(pixel_values), pixel_values), picture, atol=1e-5)


def test_hog_is_drawn_along_the_edges():
    targets = generator("hog", target_options={"cell_size": 4, "gaussian_window": 0})
    stripes = (torch.arange(32) // 4 % 2).float().expand(1, 3, 32, 32)  # upright
    for pixel_values, along in ((stripes, 2), (stripes.transpose(2, 3), 3)):
        picture = targets.render(targets(pixel_values), pixel_values)
        assert picture.shape == (1, 3, 32, 32) and picture.min() >= 0 and picture.max() <= 1
        cell = picture[0, 0, 8:12, 8:12]
        # the same along the edge but for the half bin that the angle of a bin's middle is off, changing across it
        assert cell.std(dim=along - 2).mean() < 0.5 * cell.std(dim=3 - along).mean()


def test_hog_that_does_not_fit():
    with pytest.raises(ValueError, match="a patch has 8 pixels a side, a cell 3"):
        generator("hog", target_options={"cell_size": 3})
    with pytest.raises(ValueError, match="it has 24 x 24 pixels, the window 16"):
        generator("hog")(images(24))


def test_dalle_tokens_from_a_folder(tmp_path):
    codebook = FlavaImageCodebook(FlavaImageCodebookConfig(hidden_size=8, num_blocks_per_group=1, vocab_size=32)).eval()
    codebook.save_pretrained(tmp_path)
    targets = generator("dalle", target_name_or_path=str(tmp_path), target_options={"size": 32})
    picture = torch.rand(2, 3, 32, 32)
    tokens = targets(images(), 0.8 * picture + 0.1)
    assert torch.equal(tokens, codebook.get_codebook_indices(0.8 * picture + 0.1).flatten(1))
    # the view's pixels, made from the model's: the same as a view makes them when no resizing lies between
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    made = targets.resize(codebook, (picture - mean) / std)
    assert torch.allclose(made, 0.8 * picture + 0.1, atol=1e-5)


def test_vqkd_tokens_of_the_authors_file(tmp_path):
    """The file of a tokenizer becomes a folder whose tokens are those computed from its tensors."""
    width, grid, codes = 16, 4, 20
    shapes = {
        "encoder.cls_token": (1, 1, width),
        "encoder.pos_embed": (1, 1 + grid**2, width),
        "encoder.patch_embed.proj.weight": (width, 3, 8, 8),
        "encoder.patch_embed.proj.bias": (width,),
        "encoder.blocks.0.attn.q_bias": (width,),
        "encoder.blocks.0.attn.v_bias": (width,),
        "encoder.blocks.0.attn.qkv.weight": (3 * width, width),
        "encoder.blocks.0.attn.proj.weight": (width, width),
        "encoder.blocks.0.attn.proj.bias": (width,),
        "encoder.blocks.0.mlp.fc1.weight": (2 * width, width),
        "encoder.blocks.0.mlp.fc1.bias": (2 * width,),
        "encoder.blocks.0.mlp.fc2.weight": (width, 2 * width),
        "encoder.blocks.0.mlp.fc2.bias": (width,),
        **{f"encoder.blocks.0.norm{i}.{name}": (width,) for i in (1, 2) for name in ("weight", "bias")},
        "encoder.fc_norm.weight": (width,),
        "encoder.fc_norm.bias": (width,),
        "encode_task_layer.0.weight": (width, width),
        "encode_task_layer.0.bias": (width,),
        "encode_task_layer.2.weight": (6, width),
        "encode_task_layer.2.bias": (6,),
        "quantize.embedding.weight": (codes, 6),
        "quantize.cluster_size": (codes,),
        "decoder.cls_token": (1, 1, width),
    }
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    torch.save({"model": tensors}, tmp_path / "vqkd.pth")
    convert_tokenizer(tmp_path / "vqkd.pth", tmp_path / "tokenizer")

    def linear(x, name):
        return torch.nn.functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, (width,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-6)

    block = "encoder.blocks.0"
    pixels = images()
    patches = torch.nn.functional.conv2d(
        pixels, tensors["encoder.patch_embed.proj.weight"], tensors["encoder.patch_embed.proj.bias"], stride=8
    )
    x = torch.cat([tensors["encoder.cls_token"].expand(2, -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    x = x + tensors["encoder.pos_embed"]
    bias = torch.cat([tensors[f"{block}.attn.q_bias"], torch.zeros(width), tensors[f"{block}.attn.v_bias"]])
    q, k, v = torch.nn.functional.linear(norm(x, f"{block}.norm1"), tensors[f"{block}.attn.qkv.weight"], bias).chunk(
        3, -1
    )
    attended = (q @ k.transpose(1, 2) / width**0.5).softmax(dim=-1) @ v  # one head
    x = x + linear(attended, f"{block}.attn.proj")
    hidden = torch.nn.functional.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
    x = norm(x + linear(hidden, f"{block}.mlp.fc2"), "encoder.fc_norm")[:, 1:]
    projected = linear(linear(x, "encode_task_layer.0").tanh(), "encode_task_layer.2")
    similarities = torch.nn.functional.cosine_similarity(
        projected[:, :, None], tensors["quantize.embedding.weight"], dim=-1
    )
    targets = generator("vqkd", target_name_or_path=str(tmp_path / "tokenizer"), target_options={"size": codes})
    assert torch.equal(targets(images(), pixels), similarities.argmax(dim=-1))
    assert targets(images()).shape == (2, 16)

    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is no tokenizer of BEiT v2: its keys are fc.weight"):
        convert_tokenizer(tmp_path / "other.safetensors", tmp_path / "none")


def test_clip_features_and_attention(tmp_path):
    fields = {**VIT, "projection_dim": 12, "intermediate_size": 32}
    network = CLIPVisionModelWithProjection(CLIPVisionConfig(**fields)).eval()
    network.save_pretrained(tmp_path)
    targets = generator("clip", target_name_or_path=str(tmp_path), target_options={"size": 12})
    features = targets(images(), images())
    hidden = network.vision_model(images()).last_hidden_state
    expected = network.visual_projection(network.vision_model.post_layernorm(hidden))[:, 1:]
    assert torch.allclose(features, expected, atol=1e-5)
    attention = targets.attention(images())
    assert attention.shape == (2, 16) and (attention.sum(dim=1) < 1).all() and (attention > 0).all()


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_features_of_a_folder(tmp_path, kind):
    if kind == "vit":
        network = ViTModel(ViTConfig(**VIT), add_pooling_layer=False)
    else:
        network = ResNetModel(ResNetConfig(hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8))
    network.eval().save_pretrained(tmp_path)
    options = {"size": 16, "image_size": 32}
    targets = generator("features", target_name_or_path=str(tmp_path), target_options=options)
    features, hidden = targets(images(), images()), network(images()).last_hidden_state
    expected = hidden[:, 1:] if kind == "vit" else hidden.flatten(2).transpose(1, 2)
    assert torch.allclose(features, expected, atol=1e-5)
    assert targets(images()).shape == (2, 16, 16)


def test_random_network_is_the_same_everywhere():
    options = {"size": 16, "network": {"hidden_size": 8, "num_blocks_per_group": 1}}
    before = torch.get_rng_state()
    tokens = [generator("dalle", target_random=True, target_options=options)(images()) for _ in range(2)]
    assert torch.equal(*tokens) and torch.equal(torch.get_rng_state(), before)


def test_network_that_cannot_be_had(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="set target_name_or_path to its folder or its Hub id"):
        generator("dalle")(images())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"ssl-hub/nowhere, is no folder .* cannot be had from the Hub.*hf download"):
        generator("clip", target_name_or_path="ssl-hub/nowhere").load()
    # never random: a checkpoint of something else
    FlavaImageCodebookConfig(hidden_size=8, num_blocks_per_group=1, vocab_size=32).save_pretrained(tmp_path)
    save_file({"something": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks .* tensors of a FlavaImageCodebook, which would be random"):
        generator("dalle", target_name_or_path=str(tmp_path)).load()


def test_size_that_is_not_the_networks():
    network = {"hidden_size": 8, "num_blocks_per_group": 1, "vocab_size": 64}
    with pytest.raises(ValueError, match="predicts 2 values a patch, and its 'dalle' target generator makes 64"):
        generator("dalle", target_random=True, target_options={"size": 2, "network": network})(images())
    network = {**VIT, "intermediate_size": 16, "model_type": "vit"}
    with pytest.raises(ValueError, match="predicts 24 values a patch, and its 'features' target generator makes 16"):
        generator("features", target_random=True, target_options={"size": 24, "network": network})(images())
    with pytest.raises(ValueError, match="target_options of 'features' need a size"):
        generator("features")


def test_options_that_do_not_exist():
    with pytest.raises(
        ValueError, match="target_options of 'hog' may be num_bins, cell_size, gaussian_window; got bins"
    ):
        generator("hog", target_options={"bins": 9})


def test_blockwise_masks_have_the_originals_statistics():
    """Against 4000 masks of BEiT's generator: how often the middle and a corner are masked, and what neighbours share."""
    mask = torch.cat([blockwise_patch_mask(500, 14, 14, 75, torch.device("cpu")) for _ in range(4)]).view(-1, 14, 14)
    assert (mask.sum(dim=(1, 2)) == 75).all()
    assert mask[:, 6:8, 6:8].float().mean().item() == pytest.approx(0.72, abs=0.03)
    corners = mask[:, [0, 0, -1, -1], [0, -1, 0, -1]].float().mean().item()
    assert corners == pytest.approx(0.043, abs=0.012)
    same = (mask[:, :, 1:] == mask[:, :, :-1]).float().mean().item()
    assert same == pytest.approx(0.888, abs=0.005)
    small = blockwise_patch_mask(300, 2, 3, 5, torch.device("cpu"))
    assert (small.sum(dim=1) == 5).all()
