"""Fixtures that many tests share: a tiny base model, its adapters, and a server of them."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import torch

if TYPE_CHECKING:
    from tests.support.server import RunningServer

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if not torch.cuda.is_available():
    # Kernels of a GPU run in Triton's interpreter then. It has to be known before peft imports it.
    os.environ["TRITON_INTERPRET"] = "1"
# A shell that runs the tests in the background ignores Ctrl-C, and so would the servers they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine may be busy with something else: no test is about how long an example takes.
hypothesis.settings.register_profile("loramux", deadline=None)
hypothesis.settings.load_profile("loramux")

ADAPTERS: dict[str, dict[str, Any]] = {
    "small": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "wide": {"r": 13, "target_modules": "all-linear", "lora_alpha": 13},
    "rs": {"r": 8, "target_modules": "all-linear", "use_rslora": True},
    "single": {"r": 1, "target_modules": ["down_proj"], "lora_alpha": 4},
}
"""Name -> LoraConfig fields of the adapters that `tiny_server` serves."""


@pytest.fixture(autouse=True)
def _local_admin() -> Iterator[None]:
    """Let handlers that a test calls itself run for the administrator, as without keys."""
    from loramux_server.access.caller import LOCAL_ADMIN, acting

    with acting(LOCAL_ADMIN):
        yield


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub-style folder of a tiny Llama with a byte-level tokenizer."""
    from tests.support.models import save_model

    return save_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def tiny_adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of PEFT folders for `tiny_base`, one for each of ADAPTERS."""
    from tests.support.adapters import save_adapter
    from tests.support.models import tiny_model

    folder = tmp_path_factory.mktemp("adapters")
    model = tiny_model("llama", vocab_size=259)
    for seed, (name, config) in enumerate(ADAPTERS.items()):
        save_adapter(model, folder / name, seed=seed, **config)
    return folder


@pytest.fixture(scope="session")
def tiny_server(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_adapters: Path
) -> "Iterator[RunningServer]":
    """A server of `tiny_base` and `tiny_adapters`, for tests that leave it as it was."""
    from tests.support.server import RunningServer

    folder = tmp_path_factory.mktemp("server")
    with RunningServer(folder, tiny_base, "--adapters", str(tiny_adapters)) as server:
        yield server
