"""The `--adapters` directory of a server that runs."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from loramux import Client
from loramux.errors import NotFoundError
from tests.support.polling import eventually
from tests.support.server import RunningServer


@pytest.fixture
def server(tmp_path: Path, tiny_base: Path, tiny_adapters: Path) -> Iterator[RunningServer]:
    shutil.copytree(tiny_adapters / "small", tmp_path / "adapters" / "small")
    with RunningServer(
        tmp_path / "server", tiny_base, "--adapters", str(tmp_path / "adapters"),
        "--adapters-interval", "0.2", "--audit-log", str(tmp_path / "audit.jsonl"),
    ) as server:  # fmt: skip
        yield server


def names(client: Client) -> list[str]:
    return [adapter.name for adapter in client.adapters.list()]


def test_adapters_come_change_and_go_while_the_server_runs(
    server: RunningServer, tmp_path: Path, tiny_adapters: Path
) -> None:
    directory = tmp_path / "adapters"
    with server.client() as client:
        assert names(client) == ["small"]
        shutil.copytree(tiny_adapters / "wide", directory / "wide")
        assert eventually(lambda: names(client) == ["small", "wide"])
        answer = client.generate("hello", adapter="wide", max_tokens=1)
        assert answer.adapter is not None
        old = client.adapters.get("small")
        # One file after the other, as copying does.
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(tiny_adapters / "rs" / name, directory / "small" / name)
        assert eventually(lambda: client.adapters.get("small").version == 2)
        assert client.adapters.get("small").digest != old.digest
        shutil.rmtree(directory / "wide")
        assert eventually(lambda: names(client) == ["small"])
        with pytest.raises(NotFoundError):
            client.generate("hello", adapter="wide")
    log = tmp_path / "audit.jsonl"
    # What a directory brings is served first, and told then.
    assert eventually(lambda: len(log.read_text().splitlines()) == 4)
    acts = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(act["act"], act["adapter"]) for act in acts] == [
        ("directory.add", "small:1"), ("directory.add", "wide:1"), ("directory.add", "small:2"),
        ("directory.remove", "wide:1"),
    ]  # fmt: skip
    assert {(act["by"], act["tenant"], act["outcome"]) for act in acts} == {
        ("server", "public", "OK")
    }
    assert acts[0]["digest"] == old.digest
    said = server.log.read_text()
    assert "Traceback" not in said
    # What was there at the start is one line of the log.
    assert "--adapters has 1 adapters: 1 new or changed, 0 removed since the last start" in said
    assert "adapter=small:1" not in said and "adapter=small:2" in said
