"""Which GPU the engine process sees."""

import os

import pytest
import torch

from loramux_server.engine.one_gpu import restrict_to_one_gpu
from loramux_server.wire.engine_config import EngineConfig


@pytest.mark.parametrize(
    ("device", "seen", "then", "sees"),
    [
        ("cuda:2", None, "cuda", "2"),
        ("cuda:1", "4,7", "cuda", "7"),
        ("cuda:0", "GPU-8d2c", "cuda", "GPU-8d2c"),
        ("cuda:2", "4,7", "cuda:2", "4,7"),
        ("cuda:9", None, "cuda:9", None),
        ("cuda:0", "9", "cuda:0", "9"),
        ("cuda", "4,7", "cuda", "4,7"),
        ("cpu", None, "cpu", None),
        ("auto", None, "auto", None),
    ],
)
def test_it_sees_the_one_that_is_named(
    device: str, seen: str | None, then: str, sees: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    first: list[int] = []

    def count() -> int:
        """Answer as a driver does, which looks at the environment once."""
        names = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7").split(",")
        first.append(sum(name != "9" for name in names))
        return first[0]

    monkeypatch.setattr(torch.cuda, "device_count", count)
    assert restrict_to_one_gpu(EngineConfig(model="", device=device)).device == then
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == sees
    assert set(first) <= {int(then != device)}  # it was asked for none that is not to be seen
