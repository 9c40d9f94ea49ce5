"""Heads of encoders in one batch of many texts: each has the logits that PEFT has for it alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import VeraConfig

from loramux_adapters.base import read_base
from loramux_adapters.head import Task
from loramux_server.models.loading import load_base_model
from loramux_server.store.check import check_package
from loramux_server.store.served_base import ServedBase
from tests.parity.table import folded
from tests.support.adapters import pack_source
from tests.support.encoder_heads import TEXT, config_for, logits_of, save_encoder, save_headed
from tests.support.engine import Harness


@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert-mean", "deberta"])
def test_heads_of_one_batch_equal_peft_alone(name: str, tmp_path: Path) -> None:
    folder = save_encoder(name, tmp_path / "base")
    harness = Harness(load_base_model(str(folder)), kernels="cpu", rows=256, max_running=16)
    served = replace(ServedBase.of(harness.info, max_host_bytes=1 << 30), folder=read_base(folder))
    wanted: dict[int, torch.Tensor] = {}
    sources = []
    for task in Task:
        linear = task is Task.SEQUENCE and name in ("bert", "modernbert-mean")
        lora = config_for(name, task, **({"target_modules": "all-linear"} if linear else {}))
        others = folded.configs(lora.target_modules or (), str(task))
        if linear and name == "modernbert-mean":
            del others["beft"]  # its head has no bias to add to, which is said when it is packed
        others["biases"] = VeraConfig(
            task_type=str(task), r=2, bias="all", target_modules=lora.target_modules
        )
        for method, config in {"lora": lora, **others}.items():
            config.modules_to_save = lora.modules_to_save
            adapter, package = (tmp_path / f"{task} {method}{end}" for end in ("", ".safetensors"))
            logits = logits_of(save_headed(folder, task, config, adapter))
            source = pack_source(adapter, package, base=served)
            with package.open("rb") as file:
                assert check_package(file, package.stat().st_size, served).task == task
            sources.append(source)
            wanted[harness.submit(TEXT, source)] = logits
            for length in (1, 3, 5):
                harness.submit(TEXT[:length], source)
    harness.run()
    assert not harness.failures
    assert max(report.batch.adapters for report in harness.reports if report.batch) > 1
    for request_id, source in zip(wanted, sources, strict=True):
        logits = wanted[request_id]
        found = harness.logits(request_id, logits.shape[-1])
        assert found.shape == logits.shape
        torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)
        alone = harness.submit(TEXT, source)
        harness.run()
        torch.testing.assert_close(
            harness.logits(alone, logits.shape[-1]), found, rtol=0, atol=1e-6
        )
