"""What every algorithm must do. A test class of an algorithm inherits `SSLModelTests` and says what is asked below."""

import importlib
import inspect

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    pipeline,
)

from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.data.images import decode_image
from ssl_hub.data.loading import build_train_loader
from ssl_hub.data.processing import Normalize, build_image_processor
from ssl_hub.data.views import build_views
from ssl_hub.lifecycle import FeatureTable, Progress
from ssl_hub.modules.backbones import backbone_hidden_size

BATCH_SIZE = 8


def find_test_class(model_type: str) -> type["SSLModelTests"]:
    """The test class of an algorithm, in the file that is named after it."""
    module = importlib.import_module(f"test_{model_type}")
    classes = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, SSLModelTests)]
    (found,) = (each for each in classes if getattr(each, "config_class", None) is not None)
    return found


def shared_state(model):
    """The state dict without what is kept in checkpoints only."""
    own = model.training_state
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(own)}


def assert_same_state(loaded, model):
    loaded, expected = shared_state(loaded), shared_state(model)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


class SSLModelTests:
    config_class: type
    model_class: type
    classifier_class: type
    views = ({"count": 1, "size": 16, "scale": [0.6, 1.0]},)
    learning_rate = 1e-3
    # Steps in which the loss on real images must fall, below which share of where it was, from which step on.
    training_steps, loss_ratio, first_step = 40, 0.9, 0

    @classmethod
    def config(cls, **overrides):
        """A tiny configuration, for RGB images of 16 x 16 pixels."""
        raise NotImplementedError

    @classmethod
    def loss_inputs(cls, batch_size):
        """What `mode="loss"` takes besides the images so that nothing in it is left to chance."""
        return {}

    def model(self, **overrides):
        torch.manual_seed(0)
        return AutoModel.from_config(self.config(**overrides))

    @classmethod
    def images(cls, batch_size=BATCH_SIZE):
        """One view, or a list of views, of random images."""
        generator = torch.Generator().manual_seed(1)
        count = sum(view.get("count", 1) for view in cls.views)
        views = [torch.randn(batch_size, 3, 16, 16, generator=generator) for _ in range(count)]
        return views[0] if count == 1 else views

    def one_view(self, batch_size=BATCH_SIZE):
        images = self.images(batch_size)
        return images[0] if isinstance(images, list) else images

    # The three modes

    def test_tensor_mode_gives_deterministic_flat_features(self):
        model = self.model().eval()
        outputs = model(self.one_view())
        assert outputs.pooler_output.shape == (BATCH_SIZE, backbone_hidden_size(model.backbone))
        assert torch.equal(outputs.pooler_output, model(self.one_view()).pooler_output)
        assert torch.equal(outputs[0], outputs.last_hidden_state)
        assert not torch.allclose(outputs.pooler_output[0], outputs.pooler_output[1])

    def test_loss_mode_trains_every_trainable_parameter(self):
        model = self.model().train()
        outputs = model(self.images(), mode="loss", **self.loss_inputs(BATCH_SIZE))
        assert outputs.loss.ndim == 0 and torch.isfinite(outputs.loss)
        assert not any(term.requires_grad for term in outputs.losses.values())
        outputs.loss.backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert without == []

    def test_predict_mode_needs_no_gradient(self):
        outputs = self.model().eval()(self.one_view(), mode="predict")
        tensors = [value for value in outputs.values() if isinstance(value, torch.Tensor)]
        assert tensors and all(len(tensor) == BATCH_SIZE for tensor in tensors)
        assert not any(tensor.requires_grad for tensor in tensors)

    def test_mode_that_does_not_exist(self):
        with pytest.raises(ValueError, match="'tensor', 'loss', 'predict'; got 'features'"):
            self.model()(self.one_view(), mode="features")

    def test_wrong_channel_count(self):
        for mode in ("tensor", "predict"):
            with pytest.raises(ValueError, match=r"\(batch_size, 3, height, width\), got \(2, 1, 16, 16\).*RGB"):
                self.model()(torch.zeros(2, 1, 16, 16), mode=mode)

    @pytest.mark.parametrize("mode", ["tensor", "loss", "predict"])
    def test_pixels_that_are_no_batch_of_floats(self, mode):
        model, images = self.model(), self.images() if mode == "loss" else self.one_view()

        def each(function):
            return [function(view) for view in images] if isinstance(images, list) else function(images)

        bad = {
            "must be normalised floats, got torch.uint8": each(lambda view: (view * 50).clamp(0, 255).byte()),
            "must be normalised floats, got torch.int64": each(lambda view: view.long()),
            r"hold no image: got a batch of the shape \(0, ": each(lambda view: view[:0]),
        }
        if not isinstance(images, list):
            bad["one view of each image; got a list of 2.*counts of the views add up to 1"] = [images, images]
        for message, pixel_values in bad.items():
            with pytest.raises(ValueError, match=message):
                model(pixel_values, mode=mode, **(self.loss_inputs(BATCH_SIZE) if mode == "loss" else {}))

    def test_return_loss_is_the_mode(self):
        losses = []
        for option in ({"mode": "loss"}, {"return_loss": True}):
            model = self.model().eval()
            losses.append(model(self.images(), **option, **self.loss_inputs(BATCH_SIZE)).loss)
        assert torch.equal(*losses)
        assert "loss" not in model(self.one_view(), return_loss=False)

    @pytest.mark.parametrize("mode", ["tensor", "loss", "predict"])
    def test_argument_that_the_mode_does_not_take(self, mode):
        with pytest.raises(
            ValueError, match=f"mode='{mode}' of {self.model_class.__name__} takes pixel_values.*not lab"
        ):
            self.model()(self.images(), mode=mode, labels=torch.zeros(BATCH_SIZE))

    def test_return_dict_false_gives_a_tuple(self):
        outputs = self.model().eval()(self.one_view(), return_dict=False)
        assert isinstance(outputs, tuple) and outputs[1].ndim == 2

    def test_hidden_states_on_request(self):
        model = self.model().eval()
        assert model(self.one_view()).hidden_states is None
        hidden_states = model(self.one_view(), output_hidden_states=True).hidden_states
        assert len(hidden_states) > 1
        assert len(self.model(output_hidden_states=True)(self.one_view()).hidden_states) == len(hidden_states)

    # Saving and loading

    def test_saved_and_loaded_it_is_the_same_model(self, tmp_path):
        model = self.model().eval()
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.data += 0.01 * torch.rand_like(tensor)  # not what an initialisation would give
        model.save_pretrained(tmp_path)
        for auto_class in (AutoModel, AutoModelForPreTraining):
            loaded = auto_class.from_pretrained(tmp_path)
            assert type(loaded) is self.model_class
            assert_same_state(loaded, model)
            assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
                n for n, p in model.named_parameters() if p.requires_grad
            }
        assert torch.equal(loaded(self.one_view()).pooler_output, model(self.one_view()).pooler_output)
        assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}

    def test_config_round_trip(self, tmp_path):
        config = self.config(pooling="cls")
        config.save_pretrained(tmp_path)
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert type(loaded) is self.config_class
        assert type(loaded.backbone_config) is type(config.backbone_config)
        assert loaded.to_diff_dict() == config.to_diff_dict()

    def test_what_a_checkpoint_lacks_is_initialised(self, tmp_path):
        """Otherwise it would be uninitialised memory, without an error."""
        self.model().save_pretrained(tmp_path)
        save_file({"nothing": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        loaded, fresh = shared_state(AutoModel.from_pretrained(tmp_path)), shared_state(self.model())
        for name, tensor in fresh.items():
            if tensor.is_floating_point() and tensor.numel() >= 16:
                assert torch.isfinite(loaded[name]).all(), name
                assert tensor.std() / 3 - 1e-5 < loaded[name].std() < tensor.std() * 3 + 1e-5, name

    def test_image_classification_from_the_same_checkpoint(self, tmp_path):
        model = self.model().eval()
        model.save_pretrained(tmp_path)
        classifier, info = AutoModelForImageClassification.from_pretrained(
            tmp_path, num_labels=5, output_loading_info=True
        )
        assert type(classifier) is self.classifier_class
        assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
        assert not info["unexpected_keys"]
        outputs = classifier(self.one_view(), labels=torch.arange(BATCH_SIZE) % 5)
        assert outputs.logits.shape == (BATCH_SIZE, 5) and torch.isfinite(outputs.loss)
        features = classifier.extract_features(self.one_view()).pooler_output
        assert torch.equal(features, model(self.one_view()).pooler_output)

    def test_backbone_loads_as_plain_transformers(self, tmp_path):
        model = self.model().eval()
        model.backbone.save_pretrained(tmp_path)
        plain = AutoModel.from_pretrained(tmp_path).eval()
        assert type(plain).__module__.startswith("transformers.")
        expected = model(self.one_view()).last_hidden_state
        assert torch.equal(plain(self.one_view()).last_hidden_state, expected)

    def test_image_processor_and_pipeline(self, tmp_path):
        model = self.model().eval()
        model.save_pretrained(tmp_path)
        config = model.config
        build_image_processor(16, config.image_mean, config.image_std).save_pretrained(tmp_path)
        image_processor = AutoImageProcessor.from_pretrained(tmp_path)
        image = decode_image(load_image_dataset("digits")[0]["image"])
        pixel_values = image_processor(image, return_tensors="pt").pixel_values
        for name_or_model in (str(tmp_path), model):
            extract = pipeline("image-feature-extraction", model=name_or_model, image_processor=image_processor)
            features = extract(image, pool=True, return_tensors=True)
            assert torch.allclose(features, model(pixel_values).pooler_output, atol=1e-6)

    # Training

    def test_gradient_checkpointing_changes_nothing(self):
        images, gradients = self.images(), []
        images = images.double() if isinstance(images, torch.Tensor) else [view.double() for view in images]
        for enable in (False, True):
            model = self.model().double().train()
            if enable:
                model.gradient_checkpointing_enable()
            loss = model(images, mode="loss", **self.loss_inputs(BATCH_SIZE)).loss
            assert loss.dtype == torch.float64
            loss.backward()
            gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*gradients, strict=True))

    def test_bf16_autocast(self):
        exact = self.model().train()(self.images(), mode="loss", **self.loss_inputs(BATCH_SIZE)).loss
        model = self.model().train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(self.images(), mode="loss", **self.loss_inputs(BATCH_SIZE)).loss
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact.item(), rel=0.03, abs=0.02)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)

    def test_half_precision_weights_take_float32_images(self):
        model = self.model().to(torch.bfloat16).train()
        loss = model(self.images(), mode="loss", **self.loss_inputs(BATCH_SIZE)).loss
        loss.backward()
        assert loss.dtype == torch.float32 and loss.isfinite()
        assert all(p.grad.dtype == torch.bfloat16 for p in model.parameters() if p.grad is not None)
        assert model.eval()(self.one_view()).pooler_output.dtype == torch.bfloat16
        model(self.one_view(), mode="predict")

    def test_a_compiled_step_is_one_graph_compiled_once(self):
        model, inputs = self.model().train(), self.loss_inputs(BATCH_SIZE)
        torch._dynamo.reset()
        model.loss = torch.compile(model.loss, backend="eager", fullgraph=True)  # as the trainer does
        for number in range(3):
            model.begin_step(Progress(number, 3, 1))
            with torch._dynamo.config.patch(error_on_recompile=number > 0):
                model(self.images(), mode="loss", **inputs).loss.backward()
                model.end_step(Progress(number + 1, 3, 1))
                model.eval()(self.one_view(3 - number))
                model.train()

    def test_hooks(self):
        """In the order of a run, and that the scheduled values of a loaded model are those of a run's end."""
        model = self.model()

        def features(extract=None):
            return FeatureTable(torch.randn(20, backbone_hidden_size(model.backbone)), torch.ones(20, dtype=torch.bool))

        model.begin_run(20)
        for step in range(4):
            if step % 2 == 0:
                weights = model.begin_epoch(Progress(step, 4, 2), features)
                assert weights is None or weights.shape == (20,)
            model.begin_step(Progress(step, 4, 2))
            model.end_step(Progress(step + 1, 4, 2))

    def test_a_loaded_model_is_as_at_the_end_of_a_run(self, tmp_path):
        model = self.model()
        for name in getattr(model, "scheduled", {}):
            model.set_scheduled(**{name: 0.25})
        model.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path)
        assert {name: loaded.get_buffer(name).item() for name in getattr(loaded, "scheduled", {})} == getattr(
            model, "scheduled", {}
        )

    def test_loss_falls_on_real_images(self):
        model = self.model().train()
        dataset, views = load_image_dataset("digits"), build_views(list(self.views))
        loader = build_train_loader(dataset, views, batch_size=32, seed=0)
        normalize = Normalize(model.config.image_mean, model.config.image_std, views)
        names = inspect.signature(model.loss).parameters
        model.begin_run(len(dataset))
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.learning_rate)
        losses = []
        while len(losses) < self.training_steps:
            loader.batch_sampler.set_epoch(len(losses))
            for batch in loader:
                inputs = {name: value for name, value in normalize(batch).items() if name in names}
                loss = model(mode="loss", **inputs).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
                model.end_step(Progress(len(losses), 100))
        first, last = losses[self.first_step], sum(losses[-5:]) / 5
        assert last < self.loss_ratio * first, f"the loss went from {first} to {last}"
