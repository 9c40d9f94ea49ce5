"""What becomes of an import that ends before it is registered."""

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from peft import VeraConfig

from loramux.errors import UnavailableError
from loramux.v1.adapters_pb2 import ImportAdapterRequest
from loramux_adapters import open_package
from loramux_adapters.embedding import Embedding, Pooling
from loramux_adapters.vocabulary import BaseVocabulary
from loramux_server.engine_link.mailbox import Mailbox
from loramux_server.services.adapters.imports import Imports
from loramux_server.services.adapters.intake import Intake
from loramux_server.sources.policy import Opening, Sources
from loramux_server.sources.snapshot import OPTIONAL, REQUIRED, Snapshot
from loramux_server.store.registry import Registry
from loramux_server.store.served_base import ServedBase
from loramux_server.wire.messages import Token
from tests.adapters.files import CONFIG, Tensors, pair, write_folder
from tests.support.adapters import save_tuned
from tests.support.bases import ROOMY, SMALL
from tests.support.embedders import write_sentence_files
from tests.support.models import tiny_model
from tests.support.packages import small_package

PACKAGE = small_package(0)
BASE = replace(ROOMY, layers=SMALL)
REQUEST = ImportAdapterRequest(name="a", uri="s3://bucket/a.safetensors")


class Held:
    """A source of one package, which waits before its second half."""

    origin = REQUEST.uri

    def __init__(self, said: int = len(PACKAGE)) -> None:
        self.sizes: Mapping[str, int] = {"a.safetensors": said}
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        self.was_read_on = False

    def read(self, name: str) -> Iterator[bytes]:
        yield PACKAGE[:100]
        self.has_begun.set()
        assert self.may_end.wait(60)
        yield PACKAGE[100:]
        self.was_read_on = True


class Folder:
    """A source of a PEFT folder, whatever its files."""

    origin = REQUEST.uri

    def __init__(self, folder: Path) -> None:
        self._files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()
        }  # fmt: skip
        self.sizes: Mapping[str, int] = {name: len(data) for name, data in self._files.items()}

    def read(self, name: str) -> Iterator[bytes]:
        yield self._files[name]


class OneSource(Sources):
    """Allows everything, and finds the same everywhere."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self._snapshot = snapshot

    def find(self, uri: str) -> Opening:
        return lambda is_cancelled: self._snapshot


class Engine:
    """Makes a token of every request."""

    def submit(self, mailbox: Mailbox[Any], index: int, *_: object, **__: object) -> int:
        mailbox.put(index, Token(1, 1))
        return 1

    def cancel(self, request_id: int) -> None:
        pass


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path)
    yield registry
    registry.close()


def imports(registry: Registry, snapshot: Snapshot, base: ServedBase = BASE) -> Imports:
    intake = Intake(
        registry=registry,
        engine=cast(Any, Engine()),
        model=cast(
            Any,
            SimpleNamespace(
                vocab_size=100, context_length=100, source_length=0, writing=None, is_encoder=False
            ),
        ),
        base=base,
        max_upload_bytes=1 << 20,
    )
    return Imports(intake, OneSource(snapshot), 1 << 20)


def staged(folder: Path) -> list[Path]:
    return list((folder / "staging").iterdir())


async def test_an_import_that_is_cancelled_leaves_nothing(
    registry: Registry, tmp_path: Path
) -> None:
    snapshot = Held()
    task = asyncio.create_task(imports(registry, snapshot).take(REQUEST))
    assert await asyncio.to_thread(snapshot.has_begun.wait, 30)
    assert registry.quotas.taken("public") == (len(PACKAGE), 1)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()  # the thread has its hands on the file
    snapshot.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not snapshot.was_read_on
    assert (staged(tmp_path), registry.names()) == ([], [])
    assert registry.quotas.taken("public") == (0, 0)


@pytest.mark.parametrize("said", [len(PACKAGE) - 1, len(PACKAGE) + 1])
async def test_other_sizes_than_announced_are_not_taken(
    registry: Registry, tmp_path: Path, said: int
) -> None:
    snapshot = Held(said)
    snapshot.may_end.set()
    with pytest.raises(UnavailableError, match=f"announced size of {said} bytes"):
        await imports(registry, snapshot).take(REQUEST)
    assert (staged(tmp_path), registry.names()) == ([], [])


async def test_what_came_whole_is_registered_with_its_origin(registry: Registry) -> None:
    snapshot = Held()
    snapshot.may_end.set()
    record, is_new = await imports(registry, snapshot).take(REQUEST)
    assert (is_new, record.origin, record.source) == (True, REQUEST.uri, "import")
    assert registry.get("a") == record


async def test_tokens_of_its_own_come_along(registry: Registry, tmp_path: Path) -> None:
    embedding = "model.embed_tokens"
    delta = f"base_model.model.{embedding}.token_adapter.trainable_tokens_delta"
    layer = pair(next(iter(SMALL)), 2, features=(3, 4))
    tensors: Tensors = {**layer, delta: ("F32", [1, 3], bytes(12))}
    folder = write_folder(tmp_path / "a", tensors, CONFIG | {"trainable_token_indices": [5]})
    token = {"id": 5, "content": "<tool>", "special": True}
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [token]}))
    snapshot = Folder(folder)
    assert set(snapshot.sizes) <= {*REQUIRED, *OPTIONAL}  # what a source is asked for
    vocabulary = BaseVocabulary(embedding, "lm_head", 9, 9)
    base = replace(
        ROOMY, layers=SMALL, parameters={f"{embedding}.weight": (9, 3)}, vocab_size=9,
        vocabulary=vocabulary,
    )  # fmt: skip
    record, _ = await imports(registry, snapshot, base).take(REQUEST)
    with open_package(registry.blobs.path(record.digest)) as (_, package):
        assert package.notes["added_tokens"] == [token]


async def test_vera_has_the_widths_of_the_base_that_is_served(
    registry: Registry, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    config = VeraConfig(r=4, target_modules=["q_proj"])
    save_tuned(model, config, tmp_path / "a", seed=1)
    (tmp_path / "a" / "README.md").unlink()
    layers = {f"model.layers.{number}.self_attn.q_proj": (32, 32) for number in range(2)}
    made = imports(registry, Folder(tmp_path / "a"), replace(ROOMY, layers=layers))
    record, _ = await made.take(REQUEST)
    assert record.rank == 4


async def test_files_of_sentence_transformers_come_along(
    registry: Registry, tmp_path: Path
) -> None:
    tensors = pair(next(iter(SMALL)), 2, features=(3, 4))
    config = CONFIG | {"task_type": "FEATURE_EXTRACTION"}
    folder = write_folder(tmp_path / "a", tensors, config)
    write_sentence_files(folder, "mean", normalizes=False)
    snapshot = Folder(folder)
    assert set(snapshot.sizes) <= {*REQUIRED, *OPTIONAL}  # what a source is asked for
    record, _ = await imports(registry, snapshot).take(REQUEST)
    assert record.task == "FEATURE_EXTRACTION"
    with open_package(registry.blobs.path(record.digest)) as (_, package):
        assert package.embedding == Embedding(Pooling.MEAN, normalize=False)
