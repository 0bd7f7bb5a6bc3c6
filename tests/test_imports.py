"""What `import ssl_hub` costs, and that it works whatever is imported first."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ssl_hub
from ssl_hub._registration import _CONFIG_MODULES


def run(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


HEAVY = {"torch", "torchvision", "accelerate", "datasets", "sklearn", "scipy", "faiss", "matplotlib"}


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        ("import transformers, ssl_hub", ""),
        ("from ssl_hub.commands import main; main(['--help'])", ""),
        # transformers' `SchedulerType` imports torch
        ("import ssl_hub.commands.pretrain", "torch"),
    ],
)
def test_import_is_cheap(code, loaded):
    printed = run(f"{code}\nimport sys\nprint('loaded:', *{HEAVY} & set(sys.modules))")
    assert printed.splitlines()[-1] == f"loaded: {loaded}".strip()


ORDERS = [
    "from transformers import AutoModel; import ssl_hub",
    "import ssl_hub; from transformers import AutoModel",
    "import ssl_hub; from transformers import PreTrainedModel, AutoModel",
    "import ssl_hub; from transformers import ViTConfig, AutoModel",
    "import ssl_hub; from transformers import ResNetConfig, AutoModel",
    "import ssl_hub; from transformers import BeitModel, SwinModel, AutoModel",
    "from ssl_hub.models.mae.modeling_mae import MAEModel; from transformers import AutoModel",
]


def test_any_order_of_imports():
    """Each in a process of its own, forked from one that has imported torch, which takes longest."""
    make = f"AutoModel.from_config(AutoConfig.for_model('mae', {TINY}))"
    code = "import os, torch\n"
    for order in ORDERS:
        code += (
            "if os.fork() == 0:\n"
            f"    {order}\n    from transformers import AutoConfig\n"
            f"    print({make}.base_model_prefix, flush=True)\n    os._exit(0)\nos.wait()\n"
        )
    assert run(code).split() == ["backbone"] * len(ORDERS)


def test_registration_waits_for_what_configurations_import():
    files = Path(ssl_hub.__file__).parent.rglob("configuration_*.py")
    imports = r"^from (transformers\.models\.\w+\.configuration_\w+) import"
    imported = {name for file in files for name in re.findall(imports, file.read_text(), re.MULTILINE)}
    assert imported == set(_CONFIG_MODULES)


TINY = (
    "backbone_config={'image_size': 16, 'patch_size': 4, 'hidden_size': 16, 'num_hidden_layers': 1,"
    " 'num_attention_heads': 2, 'intermediate_size': 16}, decoder_num_hidden_layers=1"
)


def test_the_stub_has_the_public_names():
    stub = (Path(ssl_hub.__file__).parent / "__init__.pyi").read_text()
    assert {*re.findall(r"as (\w+)", stub), "__version__"} == set(ssl_hub.__all__)


def test_a_transformers_without_auto_classes_is_told():
    """Not passed over: no model could be loaded, and nobody would know why."""
    code = "import ssl_hub._registration as r; r._AUTO_MODULES = ('transformers.models.auto.other',)\n"
    code += "try: r.register_algorithms()\nexcept ImportError as error: print(error)"
    assert "when transformers.models.auto.other is imported, and the installed transformers has no such" in run(code)


def test_unknown_name():
    code = "import ssl_hub\ntry: ssl_hub.Nothing\nexcept AttributeError as error: print(error)"
    assert "has no attribute 'Nothing'; it has BEiTV1Config" in run(code)
