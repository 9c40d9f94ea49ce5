"""An adapter whose weights are finite and whose logits are not: nobody else notices."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from loramux import Client
from loramux.errors import FailedPreconditionError
from loramux.types import SamplingOptions
from tests.support.adapters import save_adapter
from tests.support.models import tiny_model
from tests.support.polling import eventually
from tests.support.server import RunningServer

LIMIT = 3
OPTIONS = SamplingOptions(temperature=0.0, max_tokens=40, ignore_eos=True, logprobs=2)


def poison(folder: Path) -> None:
    """Make the adapter in `folder` overflow."""
    path = folder / "adapter_model.safetensors"
    save_file({name: weight * 1e15 for name, weight in load_file(path).items()}, path)


def reason_of(client: Client) -> str:
    with pytest.raises(FailedPreconditionError) as caught:
        client.generate("hello", adapter="bad", max_tokens=2)
    return caught.value.reason


def test_it_is_refused_after_some_requests_until_it_is_cleared_or_replaced(
    tmp_path: Path, tiny_base: Path
) -> None:
    model = tiny_model("llama", vocab_size=259)
    adapters = tmp_path / "adapters"
    for name, seed in (("good", 1), ("bad", 2)):
        save_adapter(model, adapters / name, seed=seed, r=4, target_modules="all-linear")
    poison(adapters / "bad")
    arguments = ("--adapters", str(adapters), "--adapters-interval", "0.2")
    with (
        RunningServer(tmp_path / "server", tiny_base, *arguments) as server,
        server.client() as client,
        ThreadPoolExecutor(4) as pool,
    ):
        alone = client.generate("hello", adapter="good", **OPTIONS)
        for _ in range(2):
            beside = [
                pool.submit(client.generate, "hello", adapter="good", **OPTIONS) for _ in range(3)
            ]
            assert [reason_of(client) for _ in range(LIMIT)] == ["ADAPTER_NOT_FINITE"] * LIMIT
            assert reason_of(client) == "ADAPTER_QUARANTINED"
            assert all(call.result().token_ids == alone.token_ids for call in beside)
            (entry,) = client.quarantined()
            assert entry.adapters == ("bad:1",)
            client.clear_quarantined("bad")
        again = client.generate("hello", adapter="good", **OPTIONS)  # where it was before
        assert again.token_ids == alone.token_ids
        for _ in range(LIMIT):
            reason_of(client)
        assert reason_of(client) == "ADAPTER_QUARANTINED"
        save_adapter(model, adapters / "bad", seed=3, r=4, target_modules="all-linear")
        assert eventually(lambda: client.adapters.get("bad").version == 2)
        assert client.generate("hello", adapter="bad", **OPTIONS).token_ids
