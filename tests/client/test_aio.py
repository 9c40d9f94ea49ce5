"""The asynchronous client does not keep its event loop from other work."""

import threading
from pathlib import Path
from typing import Any

import pytest

from loramux import AsyncClient, _aio_adapters
from loramux._upload import open_upload
from loramux.errors import InvalidArgumentError, UnavailableError
from tests.adapters.files import package


async def test_an_upload_is_packed_and_hashed_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    class Opening:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._opening = open_upload(*arguments, **options)

        def __enter__(self) -> Any:
            threads.append(threading.current_thread())
            return self._opening.__enter__()

        def __exit__(self, *error: Any) -> bool | None:
            return self._opening.__exit__(*error)

    monkeypatch.setattr(_aio_adapters, "open_upload", Opening)
    path = tmp_path / "a.safetensors"
    path.write_bytes(package())
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(UnavailableError):
            await client.adapters.upload("a", path)
    assert threads
    assert threads[0] is not threading.current_thread()


async def test_what_is_no_adapter_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"nothing")
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidArgumentError, match=r"a\.safetensors"):
            await client.adapters.upload("a", path)
