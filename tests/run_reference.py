"""Compares ssl_hub with numbers computed by the original code of MMSelfSup 1.0.

    python tests/run_reference.py FOLDER

FOLDER holds cases, each a `NAME.safetensors` with its `NAME.json`: whole algorithms (`mae_a`) and, usually in `parts/`,
single losses, necks, heads, ... One line a case gives the worst relative error of its losses, gradients, features and
of the state after a step, in float32; what has numbers in float64 is run in double precision too. Exits with 1 if a
supported case is off by more than the tolerances of `reference_case`, or if there is no supported case.
"""

import math
import sys
from pathlib import Path

import torch
from reference_case import Case
from reference_parts import PARTS, FixedDropout, UnsupportedCaseError, compare_memory, dalle_encoder
from torch import nn
from transformers import AutoModel

import ssl_hub  # noqa: F401 - registers the algorithms
from ssl_hub.conversion import mmselfsup
from ssl_hub.conversion.state_dicts import load_strictly
from ssl_hub.lifecycle import cosine_ramp
from ssl_hub.models.mae.modeling_mae import MAEModel
from ssl_hub.models.rotationpred.modeling_rotationpred import rotate
from ssl_hub.modules.clustering import cluster_weights
from ssl_hub.modules.masking import patchify, pixel_mask, visible_patch_indices
from ssl_hub.registry import ALGORITHMS


def check_mae(case: Case) -> None:
    def convert(state):
        return mmselfsup.convert_state_dict("MAE", state)

    model = AutoModel.from_config(mmselfsup.convert_config(case.config)).to(case.dtype).train()
    assert isinstance(model, MAEModel)
    load_strictly(model, convert(case.under("state/")))

    pixel_values, mask = case["input/0"], case["random/mask"].bool()
    loss = model(pixel_values, mode="loss", bool_masked_pos=mask).loss
    loss.backward()
    case.compare("losses", loss, case["output/loss_total"])
    case.compare_gradients(model, convert)
    case.compare_float64(loss, model, convert)

    model.eval()
    visible = visible_patch_indices(mask, case["inter/backbone#0.0"].shape[1] - 1)
    latent = model.backbone(pixel_values, visible_patches=visible).last_hidden_state
    # The original keeps the order of its shuffle, we keep the order of the image.
    order = case["random/ids_shuffle"][:, : visible.shape[1]].long().argsort(dim=1)
    expected = case["inter/backbone#0.0"]
    order = torch.cat([torch.zeros_like(order[:, :1]), order + 1], dim=1)
    expected = torch.stack([tokens[index] for tokens, index in zip(expected, order, strict=True)])
    case.compare("features", latent, expected)
    side = math.isqrt(mask.shape[1])
    prediction = model.neck(latent, visible, (side, side))
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


def check_cae(case: Case) -> None:
    """Losses, gradients and the teacher that follows, then a second call; and what each part gives."""

    def convert(state):
        return mmselfsup.convert_state_dict("CAE", state)

    def compute_loss(scenario=""):
        outputs = model(pixel_values, mode="loss", bool_masked_pos=mask, target_pixel_values=target_pixel_values)
        case.compare("losses", outputs.loss, case[f"output/{scenario}loss_total"])
        case.compare("losses", outputs.losses["main"], case[f"output/{scenario}loss.main"])
        case.compare("losses", outputs.losses["alignment"], case[f"output/{scenario}loss.align"])
        return outputs.loss

    model = AutoModel.from_config(mmselfsup.convert_config(case.config)).to(case.dtype).train()
    load_strictly(model, convert(case.under("state/")))
    codebook = dalle_encoder(case.config["target_generator"], case.under("state/target_generator."))
    model.target_generator.use(codebook)
    pixel_values, target_pixel_values = case["input/0"], case["input/1"]
    mask = case["input/mask"].bool().flatten(1)

    loss = compute_loss()
    loss.backward()
    case.compare_gradients(model, convert)
    case.compare_float64(loss, model, convert)
    visible = visible_patch_indices(mask, int((~mask[0]).sum()))
    masked = visible_patch_indices(~mask, int(mask[0].sum()))
    case.compare("features", model.backbone(pixel_values, visible).last_hidden_state, case["inter/backbone#0"])
    encoded = model.teacher.backbone(pixel_values, masked).last_hidden_state
    case.compare("features", encoded, case["inter/teacher#0"])
    _, _, prediction, latent = model._predict_patches(pixel_values, mask)
    case.compare("features", prediction, case["inter/neck#0.0"])
    case.compare("features", latent, case["inter/neck#0.1"])
    case.compare("features", codebook(target_pixel_values.float()), case["inter/target_generator#0"])
    tokens = model.target_generator(pixel_values, target_pixel_values)
    case.compare("features", tokens, case["output/target_tokens"])

    model.teacher.follow(model, model.config.teacher_momentum)
    state = model.state_dict()
    for name, expected in convert(case.under("after/")).items():
        case.compare_state(name, state[name], expected)
    compute_loss("second_step.")


def check_simmim(case: Case) -> None:
    def convert(state):
        return mmselfsup.convert_state_dict("SimMIM", state)

    model = AutoModel.from_config(mmselfsup.convert_config(case.config)).to(case.dtype).train()
    load_strictly(model, convert(case.under("state/")))
    pixel_values, mask = case["input/0"], case["input/mask"].flatten(1).bool()
    loss = model(pixel_values, mode="loss", bool_masked_pos=mask).loss
    loss.backward()
    case.compare("losses", loss, case["output/loss_total"])
    case.compare_gradients(model, convert)
    case.compare_float64(loss, model, convert)

    model.eval()
    outputs = model.backbone(pixel_values, bool_masked_pos=mask, output_hidden_states=True)
    expected = case["inter/backbone#0.0"]
    case.compare("features", outputs.last_hidden_state.transpose(1, 2).reshape(expected.shape), expected)
    case.compare("features", outputs.hidden_states[1], case["inter/backbone.stages.0#0.0"])
    config = model.config
    image_mean, image_std = (torch.tensor(x)[:, None, None] for x in (config.image_mean, config.image_std))
    reconstruction = model(pixel_values, mode="predict", bool_masked_pos=mask).reconstruction
    case.compare("features", (reconstruction - image_mean) / image_std, case["output/tensor"])
    masked_pixels = pixel_mask(mask, case["input/mask"].shape[1:], config.patch_size)
    case.compare("features", masked_pixels[:, 0].long(), case["output/reconstruct.mask"].long())


def check_joint_embedding(case: Case) -> None:
    """Loss, gradients and state after one call, then a second call; all that have a teacher begin with its update.

    `runtime` and the counter of updates in the state say which momentum that has. Statistics of the teacher's
    BatchNorm, which MMSelfSup copies from the student, are not compared.
    """
    algorithm = case.sidecar["algorithm"]

    def convert(state):
        return mmselfsup.convert_state_dict(algorithm, state)

    def compute_loss(scenario=""):
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

    model = AutoModel.from_config(mmselfsup.convert_config(case.config)).to(case.dtype).train()
    # what MMSelfSup keeps outside its state dict
    load_strictly(model, convert(case.under("state/")), new=("memory.vectors",))
    steps = next((int(tensor) for key, tensor in case.under("state/").items() if key.endswith(".steps")), 0)
    if "max_iters" in case.sidecar["runtime"]:
        momentum = scheduled_momentum(case, steps)
    else:
        momentum = case.config.get("momentum")
    views = [case[f"input/{view}"] for view in range(sum(key.startswith("input/") for key in case.tensors))]

    follow()
    loss = compute_loss()
    loss.backward()
    case.compare_gradients(model, convert)
    case.compare_float64(loss, model, convert)
    compare_state_after(case, model, convert)
    if "memory/queue" in case:
        check_swav_queue(case, model, compute_loss)
        model.config.queue_size = 0
    elif "output/second_step.loss_total" in case:
        if "max_iters" in case.sidecar["runtime"]:
            momentum = scheduled_momentum(case, steps + 1)
        follow()
        compute_loss("second_step.")

    load_strictly(model, convert(case.under("state/")), new=("memory.vectors",))
    model.eval()
    features = model(views[0]).last_hidden_state
    if "output/tensor.0.1" in case:  # a ViT's patch map, then its class token
        case.compare("features", features[:, 0], case["output/tensor.0.1"])
        expected = case["output/tensor.0.0"]
        case.compare("features", features[:, 1:].transpose(1, 2).reshape(expected.shape), expected)
    else:
        case.compare("features", features, case["output/tensor.0"])


def compare_state_after(case: Case, model, convert) -> None:
    """The state after one call; the statistics of a teacher's BatchNorm are its own."""
    own, state = model.state_dict(), case.under("state/")
    for name, expected in {**case.under("after/"), **case.under("after_sample/")}.items():
        if name not in state:  # what MMSelfSup keeps outside its state dict
            continue
        names = [key for key in convert({name: state[name]}) if key in own]
        if any("running_" in key or "num_batches" in key for key in names if key.startswith("teacher.")):
            continue
        if name in case.under("after/"):
            for key, tensor in convert({name: expected}).items():
                case.compare_state(name, own[key], tensor)
        else:
            case.compare_state(name, torch.cat([own[key].flatten() for key in names])[: len(expected)], expected)


def scheduled_momentum(case: Case, steps: int) -> float:
    """The original counts its updates in a tensor, so that the cosine's angle is rounded to float32."""
    angle = math.pi * torch.tensor(steps) / float(case.sidecar["runtime"]["max_iters"])
    return cosine_ramp(case.config["base_momentum"], 1.0, float(angle) / math.pi)


def check_swav_queue(case: Case, model, compute_loss) -> None:
    """An empty queue is filled only; a full one takes part in the assignment, and then once more, moved on."""
    queue = case["memory/queue"]
    model.config.queue_size = queue.shape[1]
    for scenario, vectors in (("queue_empty.", torch.zeros_like(queue)), ("queue.", queue), ("second_step.", None)):
        if vectors is not None:
            state = mmselfsup.convert_state_dict("SwAV", case.under("state/"))
            load_strictly(model, state, new=("memory.",))
            model.memory.vectors = vectors.clone()
        compute_loss(scenario)
        if vectors is not None:
            case.compare_state("queue", model.memory.vectors, case[f"after/{scenario}queue"])


def check_npid(case: Case) -> None:
    """Loss, gradients and state after one call, then a second call, with the recorded negatives."""

    def convert(state):
        return mmselfsup.convert_state_dict("NPID", state)

    model = AutoModel.from_config(mmselfsup.convert_config(case.config)).to(case.dtype).train()
    load_strictly(model, convert(case.under("state/")))
    model.draw_negatives = lambda indices: case["random/neg_idx"]
    losses = []
    for scenario in ("", "second_step."):
        loss = model(case["input/0"], mode="loss", indices=case["input/sample_idx"]).loss
        case.compare("losses", loss, case[f"output/{scenario}loss_total"])
        losses.append(loss)
        if not scenario:
            compare_state_after(case, model, convert)
    losses[0].backward()  # the second call has changed the memory meanwhile
    case.compare_gradients(model, convert)
    case.compare_float64(losses[0], model, convert)

    load_strictly(model, convert(case.under("state/")))
    model.eval()
    outputs = model(case["input/0"])
    case.compare("features", outputs.last_hidden_state, case["output/tensor.0"])


def check_relativeloc(case: Case) -> None:
    """From patches, as here, and from the original's pairs, where BatchNorm sees the centre eight times."""

    def convert(state):
        return mmselfsup.convert_state_dict("RelativeLoc", state)

    def restart(dropout):
        load_strictly(model, convert(case.under("state/")))
        model.neck.dropout = dropout
        model.zero_grad()

    others, centers = case["input/0"], case["input/1"]
    patches = others.unflatten(0, (-1, 8))
    patches = torch.cat([patches[:, :4], centers[::8, None], patches[:, 4:]], dim=1)
    model = AutoModel.from_config(mmselfsup.convert_config(case.config)).to(case.dtype).train()
    for scenario, dropout in (("no_dropout.", nn.Identity()), ("", FixedDropout(case["random/dropout_keep"], p=0.5))):
        restart(dropout)
        loss = model(patches, mode="loss").loss
        case.compare("losses", loss, case[f"output/{scenario}loss_total"])
    loss.backward()
    case.compare_gradients(model, convert)
    case.compare_float64(loss, model, convert)
    restart(dropout)
    model.compare(others, centers)
    compare_state_after(case, model, convert)

    restart(dropout)
    model.eval()
    case.compare("features", model(others).last_hidden_state, case["output/tensor.0"])
    compare_probabilities(case, model(patches, mode="predict").probabilities)


def check_rotationpred(case: Case) -> None:
    def convert(state):
        return mmselfsup.convert_state_dict("RotationPred", state)

    model = AutoModel.from_config(mmselfsup.convert_config(case.config)).to(case.dtype).train()
    load_strictly(model, convert(case.under("state/")))
    rotated = case["input/0"]
    case.compare("features", rotate(rotated[::4]), rotated)
    loss = model(rotated[::4], mode="loss").loss
    loss.backward()
    case.compare("losses", loss, case["output/loss_total"])
    case.compare_gradients(model, convert)
    case.compare_float64(loss, model, convert)
    compare_state_after(case, model, convert)

    load_strictly(model, convert(case.under("state/")))
    model.eval()
    case.compare("features", model(rotated).last_hidden_state, case["output/tensor.0"])
    compare_probabilities(case, model(rotated, mode="predict").probabilities.unflatten(0, (-1, 4)))


def compare_probabilities(case: Case, probabilities: torch.Tensor) -> None:
    """Of each image, with the logits of the original."""
    for image, expected in enumerate(probabilities):
        case.compare("features", expected, case[f"output/predict.{image}.head4"].softmax(dim=1))


def check_deepcluster(case: Case) -> None:
    def convert(state):
        return mmselfsup.convert_state_dict("DeepCluster", state)

    model = AutoModel.from_config(mmselfsup.convert_config(case.config)).to(case.dtype).train()
    load_strictly(model, convert(case.under("state/")), new=("memory.",))
    pixel_values, labels = case["input/0"], case["input/clustering_label"]
    model.begin_run(max(len(labels), model.config.num_clusters))
    model.memory.labels[: len(labels)] = labels
    loss = model(pixel_values, mode="loss", indices=torch.arange(len(labels))).loss
    loss.backward()
    case.compare("losses", loss, case["output/loss_total"])
    case.compare_gradients(model, convert)
    case.compare_float64(loss, model, convert)
    compare_state_after(case, model, convert)

    load_strictly(model, convert(case.under("state/")), new=("memory.",))
    model.eval()
    case.compare("features", model(pixel_values).last_hidden_state, case["output/tensor.0"])
    case.compare("features", model(pixel_values, mode="predict").logits, case["output/predict.head4"])


def check_odc(case: Case) -> None:
    """The loss in four conditions, then what the original does after a step, in its order."""

    def convert(state):
        return mmselfsup.convert_state_dict("ODC", state)

    def restart(class_weights):
        load_strictly(model, convert(case.under("state/")), new=("memory.",))
        model.memory.class_weights.copy_(class_weights)
        model.memory.features.copy_(case["memory/feature_bank"])
        model.memory.labels.copy_(case["memory/label_bank"])

    def compute_loss(scenario):
        outputs = model(case["input/0"], mode="loss", indices=case["input/sample_idx"])
        case.compare("losses", outputs.loss, case[f"output/{scenario}loss_total"])
        ratio = f"output/{scenario}loss.change_ratio"
        if ratio in case:
            case.compare("losses", outputs.losses["change_ratio"], case[ratio])
        return outputs.loss

    config = mmselfsup.convert_config(case.config)
    model = AutoModel.from_config(config).to(case.dtype).train()
    memory, uniform = model.memory, torch.ones(config.num_clusters)
    memory.start(len(case["memory/label_bank"]))  # not begin_run, which refuses a bank too small for its clusters
    dropout, model.neck.drop = model.neck.drop, nn.Identity()
    restart(uniform)
    compute_loss("no_dropout.")
    model.neck.drop = FixedDropout(case["random/dropout_keep"], dropout.p)
    restart(case["state/loss_weight"])
    compute_loss("weighted.")
    restart(uniform)
    loss = compute_loss("")
    loss.backward()
    case.compare_gradients(model, convert)
    case.compare_float64(loss, model, convert)
    compare_state_after(case, model, convert)
    compare_memory(case, memory, "memory.")
    before = {name: buffer.clone() for name, buffer in memory.named_buffers()}
    compute_loss("second_step.")
    memory.load_state_dict(before)
    memory.update_centroids()
    compare_memory(case, memory, "update_centroids.")
    memory.rebuild_small_clusters(config.min_cluster_size)
    compare_memory(case, memory, "small_clusters.")
    weights = cluster_weights(memory.sizes(), power=0.5)
    case.compare("parameters", weights, case["after/reweight.loss_weight"])

    restart(uniform)
    model.eval()
    case.compare("features", model(case["input/0"]).last_hidden_state, case["output/tensor.0"])
    case.compare("features", model(case["input/0"], mode="predict").logits, case["output/predict.head4"])


# The other algorithms of the registry go through check_joint_embedding.
SPECIAL_CHECKS = {
    "cae": check_cae,
    "deepcluster": check_deepcluster,
    "mae": check_mae,
    "npid": check_npid,
    "odc": check_odc,
    "relativeloc": check_relativeloc,
    "rotationpred": check_rotationpred,
    "simmim": check_simmim,
}


def find_check(case: Case):
    sidecar = case.sidecar
    for model_type, name in ALGORITHMS.items():
        if sidecar.get("algorithm") == name:
            return SPECIAL_CHECKS.get(model_type, check_joint_embedding)
    return PARTS.get(sidecar.get("type", case.config.get("type", sidecar.get("part"))))


def main(folder: Path) -> int:
    paths = sorted(path for path in folder.rglob("*.safetensors") if path.with_suffix(".json").is_file())
    checked, off, unsupported = 0, 0, []
    for path in paths:
        case = Case(path)
        check = find_check(case)
        if check is None:
            unsupported.append(path.stem)
            continue
        cases = [Case(path, dtype) for dtype in case.precisions()]
        try:
            for case in cases:
                check(case)
            failed = any(case.is_off() for case in cases)
            line = "; in double precision: ".join(case.summary() for case in cases)
        except UnsupportedCaseError:
            unsupported.append(path.stem)
            continue
        except Exception as error:  # one broken case must not hide the others
            failed, line = True, f"{type(error).__name__}: {error}"
        checked += 1
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
