import os

# Some virtual machines report AMX and stop the process when bfloat16 uses it. Read when torch is imported.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

# On the CPU, where equal is bit for bit, and where several processes need no GPU each.
if "SSL_HUB_TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()
torch.set_num_threads(1)  # the models are tiny, and tests run side by side


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def logging_as_it_is(monkeypatch):
    """Examples that run in this process leave the logging of other tests alone."""
    monkeypatch.setattr("ssl_hub.printing.set_up_logging", lambda: None)
