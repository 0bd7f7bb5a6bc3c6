"""What `import ssl_hub` costs, and that it works whatever is imported first."""

import subprocess
import sys

import pytest


def run(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_is_cheap():
    seconds = run(
        "import sys, time, transformers\n"
        "start = time.perf_counter()\n"
        "import ssl_hub\n"
        "assert not {'torch', 'accelerate', 'datasets'} & set(sys.modules)\n"
        "print(time.perf_counter() - start)"
    )
    assert float(seconds) < 0.3


@pytest.mark.parametrize(
    "first",
    [
        "from transformers import AutoModel; import ssl_hub",
        "import ssl_hub; from transformers import AutoModel",
        "import ssl_hub; from transformers import PreTrainedModel; from transformers import AutoModel",
        "from ssl_hub import MAEConfig; from transformers import AutoModel",
        "from ssl_hub.models.mae.modeling_mae import MAEModel; from transformers import AutoModel",
    ],
)
def test_any_order_of_imports(first):
    make = f"AutoModel.from_config(AutoConfig.for_model('mae', {TINY}))"
    code = f"{first}\nfrom transformers import AutoConfig\nprint({make}.base_model_prefix)"
    assert run(code) == "backbone"


TINY = (
    "backbone_config={'image_size': 16, 'patch_size': 4, 'hidden_size': 16, 'num_hidden_layers': 1,"
    " 'num_attention_heads': 2, 'intermediate_size': 16}, decoder_num_hidden_layers=1"
)


def test_unknown_name():
    code = "import ssl_hub\ntry: ssl_hub.Nothing\nexcept AttributeError as error: print(error)"
    assert "has no attribute 'Nothing'; it has BYOLConfig" in run(code)
