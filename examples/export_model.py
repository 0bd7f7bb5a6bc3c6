"""Writes a model as another library has it, after that library has computed the same features with it.

    python examples/export_model.py --model_name_or_path demo --to timm --output demo-timm

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

from ssl_hub.commands import run_command

if __name__ == "__main__":
    run_command("export")
