"""Writes a model as another library has it, after that library has computed the same features with it.

    ssl-hub export --model_name_or_path demo --to timm --output demo-timm

| --to | --output |
|---|---|
| timm | a folder for `timm.create_model("local-dir:demo-timm", pretrained=True)`, or from the Hub `"hf-hub:..."` |
| torchvision | a `.safetensors` file, the state dict of a ResNet or a ViT |
| transformers | a folder for `AutoModel`; of MAE and SimMIM with another, `pretraining/`, that can be trained on |
| onnx | a folder with `model.onnx`, of pixels to features |
| torch_export | a `.pt2` file for `torch.export.load`, of pixels to features |
| mmselfsup | a `.pth` file, the state dict of the whole algorithm |

An image classifier that was fine-tuned here takes its classifier along to timm, torchvision, onnx and torch_export.
"""

from dataclasses import dataclass, field

from transformers.utils.logging import disable_progress_bar

from ..conversion.export import TARGETS, export_model, load_model
from ..printing import set_up_logging
from . import parse


@dataclass
class ExportArguments:
    model_name_or_path: str = field(
        metadata={"help": "A folder or Hub id of one of our models, or of an image classifier on its backbone."}
    )
    to: str = field(metadata={"help": "What the model is written for.", "choices": list(TARGETS)})
    output: str = field(metadata={"help": "Where it goes: a new file or folder."})
    pooling: str | None = field(
        default=None,
        metadata={"help": "Of a ViT: the class token or the mean of the patches.", "choices": ["cls", "mean"]},
    )


def main(args: list[str]) -> None:
    set_up_logging()
    args = parse("export", ExportArguments, args)
    disable_progress_bar()
    difference = export_model(load_model(args.model_name_or_path, args.pooling), args.to, args.output)
    print(f"the model for {args.to} is {args.output}; its largest difference to ours is {difference:.1e}")
