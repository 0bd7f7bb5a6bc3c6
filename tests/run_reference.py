"""Compares ssl_hub with numbers computed by the original code of MMSelfSup 1.0.

    python tests/run_reference.py FOLDER

FOLDER holds cases, each a `NAME.safetensors` with its `NAME.json`: whole algorithms (`mae_a`) and, usually in `parts/`,
single losses, necks, heads, ... One line a case gives the worst relative error of its losses, gradients, features and
of the state after a step. Exits with 1 if a supported case is off by more than 1e-5, or if there is no supported case.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel

import ssl_hub  # noqa: F401 - registers the algorithms
from ssl_hub.conversion import mmselfsup
from ssl_hub.conversion.state_dicts import load_strictly
from ssl_hub.data.processing import Normalize
from ssl_hub.models.mae.modeling_mae import MAEDecoder, MAEHead, MAEModel, MAEViTModel
from ssl_hub.modules.masking import patchify, unpatchify, visible_patch_indices
from ssl_hub.modules.position_embeddings import sincos_position_embedding_2d
from ssl_hub.modules.teachers import cosine_momentum

TOLERANCE = 1e-5
# The exact gradient of a bias in front of a normalisation is 0; what is recorded there is rounding.
SMALLEST_GRADIENT = 1e-5


class Case:
    """One case, and the worst relative error seen of each kind."""

    def __init__(self, path: Path):
        self.sidecar = json.loads(path.with_suffix(".json").read_text())
        self.tensors = load_file(path)
        self.config = self.sidecar.get("mmselfsup_config", {})
        self.errors: dict[str, float] = defaultdict(float)

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        return {key[len(prefix) :]: tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}

    def compare(self, kind: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
        """Records the largest difference, relative to the largest expected value."""
        if actual.shape != expected.shape:
            raise AssertionError(f"{kind}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}")
        difference = (actual.detach().double() - expected.double()).abs().max()
        error = float(difference / expected.double().abs().max().clamp(min=1e-12))
        self.errors[kind] = max(self.errors[kind], error if error == error else float("inf"))

    def compare_gradients(self, model: nn.Module, convert) -> None:
        """Compares the norm of every parameter's gradient, and the first values where they are recorded.

        `convert` renames a state dict; one original tensor may become several of ours (q, k and v).
        """
        parameters = dict(model.named_parameters())
        state = self.under("state/")
        fixed = {name for name, _ in model.named_buffers()}
        norms = self.sidecar.get("grad_norms") or {
            key.removesuffix(".norm"): float(value) for key, value in self.under("grad/").items() if ".norm" in key
        }
        for name, norm in norms.items():
            if norm is None or norm < SMALLEST_GRADIENT:
                continue
            keys = convert({name: state[name]})
            if fixed.issuperset(keys):  # a position table that is not trained
                continue
            gradient = torch.cat([parameters[key].grad.flatten() for key in keys])
            self.compare("gradients", gradient.norm(), torch.tensor(norm))
            if f"grad/{name}.first16" in self:
                # relative to the whole gradient: its first values can be tiny
                error = (gradient[:16] - self[f"grad/{name}.first16"]).norm() / norm
                self.errors["gradients"] = max(self.errors["gradients"], float(error))


def check_mae(case: Case) -> None:
    def convert(state):
        return mmselfsup.convert_state_dict("MAE", state)

    model = AutoModel.from_config(mmselfsup.convert_config(case.config)).train()
    assert isinstance(model, MAEModel)
    load_strictly(model, convert(case.under("state/")))

    pixel_values, mask = case["input/0"], case["random/mask"].bool()
    loss = model(pixel_values, mode="loss", bool_masked_pos=mask).loss
    loss.backward()
    case.compare("losses", loss, case["output/loss_total"])
    case.compare_gradients(model, convert)

    model.eval()
    visible = visible_patch_indices(mask, case["inter/backbone#0.0"].shape[1] - 1)
    latent = model.backbone(pixel_values, visible_patches=visible).last_hidden_state
    # The original keeps the order of its shuffle, we keep the order of the image.
    order = case["random/ids_shuffle"][:, : visible.shape[1]].long().argsort(dim=1)
    expected = case["inter/backbone#0.0"]
    order = torch.cat([torch.zeros_like(order[:, :1]), order + 1], dim=1)
    expected = torch.stack([tokens[index] for tokens, index in zip(expected, order, strict=True)])
    case.compare("features", latent, expected)
    prediction = model.neck(latent, visible)
    case.compare("features", prediction, case["output/tensor"])
    if "output/target" in case:
        pixels = patchify(pixel_values, model.head.patch_size)
        mean, std = model.head.patch_statistics(pixels)
        case.compare("features", (pixels - mean) / std, case["output/target"])
    config = model.config
    image_mean, image_std = (torch.tensor(x)[:, None, None] for x in (config.image_mean, config.image_std))
    reconstruction = model(pixel_values, mode="predict", bool_masked_pos=mask).reconstruction
    reconstruction = ((reconstruction - image_mean) / image_std).permute(0, 2, 3, 1)
    case.compare("features", reconstruction, case["output/reconstruct.pred"])


def check_joint_embedding(case: Case) -> None:
    """Loss, gradients and state after one call, then a second call; all that have a teacher begin with its update.

    `runtime` and the counter of updates in the state say which momentum that has. Statistics of the teacher's
    BatchNorm, which MMSelfSup copies from the student, are not compared.
    """
    algorithm = case.sidecar["algorithm"]

    def convert(state):
        return mmselfsup.convert_state_dict(algorithm, state)

    def loss(scenario=""):
        outputs = model(views, mode="loss")
        case.compare("losses", outputs.loss, case[f"output/{scenario}loss_total"])
        return outputs.loss

    def follow():
        if hasattr(model, "teacher"):
            model.teacher.follow(model, momentum)
            # A table that is never trained is a parameter there, and averaged though student and teacher share it.
            tables = {key: tensor for key, tensor in model.named_buffers() if "position_embeddings" in key}
            for key, tensor in tables.items():
                if key.startswith("teacher."):
                    tensor.lerp_(tables[key.removeprefix("teacher.")], 1 - momentum)

    model = AutoModel.from_config(mmselfsup.convert_config(case.config)).train()
    # what MMSelfSup keeps outside its state dict
    load_strictly(model, convert(case.under("state/")), new=("counter.", "memory.vectors", "memory.filling"))
    steps = next((int(tensor) for key, tensor in case.under("state/").items() if key.endswith(".steps")), 0)
    if "max_iters" in case.sidecar["runtime"]:
        momentum = cosine_momentum(case.config["base_momentum"], steps / case.sidecar["runtime"]["max_iters"])
    else:
        momentum = case.config.get("momentum")
    views = [case[f"input/{view}"] for view in range(sum(key.startswith("input/") for key in case.tensors))]

    follow()
    loss().backward()
    case.compare_gradients(model, convert)
    own, state = model.state_dict(), case.under("state/")
    for name, expected in {**case.under("after/"), **case.under("after_sample/")}.items():
        if name not in state:  # what MMSelfSup keeps outside its state dict
            continue
        names = [key for key in convert({name: state[name]}) if key in own]
        if any("running_" in key or "num_batches" in key for key in names if key.startswith("teacher.")):
            continue
        if name in case.under("after/"):
            for key, tensor in convert({name: expected}).items():
                case.compare("state", own[key], tensor)
        else:
            case.compare("state", torch.cat([own[key].flatten() for key in names])[: len(expected)], expected)
    if "memory/queue" in case:
        check_swav_queue(case, model, loss)
        model.config.queue_size = 0
    elif "output/second_step.loss_total" in case:
        if "max_iters" in case.sidecar["runtime"]:
            momentum = cosine_momentum(case.config["base_momentum"], (steps + 1) / case.sidecar["runtime"]["max_iters"])
        follow()
        loss("second_step.")

    load_strictly(model, convert(state), new=("counter.", "memory.vectors", "memory.filling"))
    model.eval()
    features = model(views[0]).last_hidden_state
    if "output/tensor.0.1" in case:  # a ViT's patch map, then its class token
        case.compare("features", features[:, 0], case["output/tensor.0.1"])
        expected = case["output/tensor.0.0"]
        case.compare("features", features[:, 1:].transpose(1, 2).reshape(expected.shape), expected)
    else:
        case.compare("features", features, case["output/tensor.0"])


def check_swav_queue(case: Case, model, loss) -> None:
    """An empty queue is filled only; a full one takes part in the assignment, and then once more, moved on."""
    queue = case["memory/queue"]
    model.config.queue_size = queue.shape[1]
    model.memory.filling.fill_(True)
    for scenario, vectors in (("queue_empty.", torch.zeros_like(queue)), ("queue.", queue), ("second_step.", None)):
        if vectors is not None:
            state = mmselfsup.convert_state_dict("SwAV", case.under("state/"))
            load_strictly(model, state, new=("counter.", "memory."))
            model.memory.vectors = vectors.clone()
        loss(scenario)
        if vectors is not None:
            case.compare("state", model.memory.vectors, case[f"after/{scenario}queue"])


def check_mae_decoder(case: Case) -> None:
    fields = case.config
    side = int(fields["num_patches"] ** 0.5) * fields["patch_size"]
    config = mmselfsup.convert_config(
        {
            "type": "MAE",
            "backbone": {
                "arch": {
                    "embed_dims": fields["embed_dim"],
                    "num_layers": 1,
                    "num_heads": 1,
                    "feedforward_channels": fields["embed_dim"],
                },
                "img_size": side,
                "patch_size": fields["patch_size"],
            },
            "neck": fields,
            "head": {},
        }
    )
    decoder = MAEDecoder(config.decoder_config(), fields["embed_dim"])

    def convert(state):
        state = mmselfsup.convert_state_dict("MAE", {f"neck.{key}": tensor for key, tensor in state.items()})
        return {key.removeprefix("neck."): tensor for key, tensor in state.items()}

    load_strictly(decoder, convert(case.under("state/")))
    latent, ids_restore = case["input/latent"].requires_grad_(), case["input/ids_restore"]
    # row `restore < V` of the shuffled sequence belongs to that patch
    visible = ids_restore.argsort(dim=1)[:, : latent.shape[1] - 1]
    output = decoder(latent, visible)
    (output * case["input/cotangent.out"]).sum().backward()
    case.compare("features", output, case["output/train.out"])
    case.compare("gradients", latent.grad, case["grad/input.latent"])
    case.compare_gradients(decoder, convert)


def check_mae_head(case: Case) -> None:
    """The head, from images; the loss alone, from patches."""
    prediction, target = case["input/pred"].requires_grad_(), case["input/target"].requires_grad_()
    head = MAEHead(case.config.get("patch_size", 1), case.config.get("norm_pix", False))
    # the loss alone comes with patches, which are an image a pixel a patch
    images = target if target.ndim == 4 else target.transpose(1, 2)[..., None]
    loss = head(prediction, images, case["input/mask"])
    loss.backward()
    case.compare("losses", loss, case["output/train.out"])
    case.compare("gradients", prediction.grad, case["grad/input.pred"])
    case.compare("gradients", target.grad, case["grad/input.target"])


def check_vit(case: Case) -> None:
    fields = mmselfsup.convert_config(
        {"type": "MAE", "backbone": {**case.config, "type": "MAEViT"}, "neck": {"decoder_num_heads": 8}, "head": {}}
    ).backbone_config
    model = MAEViTModel(fields).train()

    def convert(state):
        state = mmselfsup.convert_state_dict("MAE", {f"backbone.{key}": tensor for key, tensor in state.items()})
        return {key.removeprefix("backbone."): tensor for key, tensor in state.items()}

    load_strictly(model, convert(case.under("state/")))
    images = case["input/x"].requires_grad_()
    outputs = model(images, output_hidden_states=True)
    objective = 0.0
    for layer in case.config["out_indices"]:
        last = layer == fields.num_hidden_layers - 1
        tokens = outputs.last_hidden_state if last else outputs.hidden_states[layer + 1]
        expected = case[f"output/train.{layer}.patch"]
        patches = tokens[:, 1:].transpose(1, 2).reshape(expected.shape)
        case.compare("features", tokens[:, 0], case[f"output/train.{layer}.cls"])
        case.compare("features", patches, expected)
        objective = objective + (tokens[:, 0] * case[f"input/cotangent.{layer}.cls"]).sum()
        objective = objective + (patches * case[f"input/cotangent.{layer}.patch"]).sum()
    objective.backward()
    case.compare("gradients", images.grad[:1], case["grad/input.x"])
    case.compare_gradients(model, convert)


def check_position_embedding(case: Case) -> None:
    for name, (height, width, dim, temperature, cls_token) in case.sidecar["fields"]["cases"].items():
        if height == width:  # the original's order of a non-square grid does not fit any sequence of patches
            table = sincos_position_embedding_2d(height, dim, cls_token=cls_token, temperature=temperature)
            case.compare("features", table, case[f"output/{name}"])


def check_patchify(case: Case) -> None:
    for name, patch_size in case.sidecar["fields"].items():
        patches = patchify(case[f"input/{name}"], patch_size)
        case.compare("features", patches, case[f"output/{name}.patchify"])
        target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        case.compare("features", target, case[f"output/{name}.target_normpix"])
        image = unpatchify(case[f"input/{name}.tokens"], patch_size, 3)
        case.compare("features", image, case[f"output/{name}.unpatchify"])


def check_preprocess(case: Case) -> None:
    mean, std = ([value / 255 for value in case.sidecar["fields"][key]] for key in ("mean", "std"))
    normalize = Normalize(mean, std)
    for view in (0, 1):
        case.compare("features", normalize(case[f"input/raw.{view}"].flip(1)), case[f"output/selfsup.{view}"])
    case.compare("features", normalize(case["input/raw.0"]), case["output/selfsup_rgb.0"])


ALGORITHMS = {
    "BarlowTwins": check_joint_embedding,
    "BYOL": check_joint_embedding,
    "DenseCL": check_joint_embedding,
    "MAE": check_mae,
    "MoCo": check_joint_embedding,
    "MoCoV3": check_joint_embedding,
    "SimCLR": check_joint_embedding,
    "SimSiam": check_joint_embedding,
    "SwAV": check_joint_embedding,
}
# by the part's type, and by its name where it has none
PARTS = {
    "MAEPretrainDecoder": check_mae_decoder,
    "MAEPretrainHead": check_mae_head,
    "MAEReconstructionLoss": check_mae_head,
    "mmcls.VisionTransformer": check_vit,
    "pos_embed": check_position_embedding,
    "patchify": check_patchify,
    "preprocess": check_preprocess,
}


def find_check(case: Case):
    sidecar = case.sidecar
    if "algorithm" in sidecar:
        return ALGORITHMS.get(sidecar["algorithm"])
    return PARTS.get(sidecar.get("type", sidecar.get("part")))


def main(folder: Path) -> int:
    paths = sorted(path for path in folder.rglob("*.safetensors") if path.with_suffix(".json").is_file())
    checked, off, unsupported = 0, 0, []
    for path in paths:
        case = Case(path)
        check = find_check(case)
        if check is None:
            unsupported.append(path.stem)
            continue
        checked += 1
        try:
            check(case)
            failed = max(case.errors.values()) > TOLERANCE
            line = ", ".join(f"{kind} {error:.1e}" for kind, error in sorted(case.errors.items()))
        except Exception as error:  # one broken case must not hide the others
            failed, line = True, f"{type(error).__name__}: {error}"
        off += failed
        print(f"{'OFF' if failed else 'ok ':3} {path.stem:24} {line}")
    print(
        f"{checked} cases checked, {off} off, {len(unsupported)} not supported yet: {', '.join(unsupported) or 'none'}"
    )
    if checked == 0:
        print(f"no supported case in {folder}")
    return int(off > 0 or checked == 0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.manual_seed(0)
    sys.exit(main(Path(sys.argv[1])))
