"""Adapters that a real server fetches from an object store, a registry and a hub."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loramux import AsyncClient, Client
from loramux.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    LoramuxError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from loramux_adapters import pack
from tests.support.adapters import save_adapter
from tests.support.gateway import RunningGateway
from tests.support.hub import Hub, running_hub
from tests.support.models import tiny_model
from tests.support.registry import Registry, running_registry
from tests.support.server import RunningServer

moto_server = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")
obstore = pytest.importorskip("obstore")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """PEFT folders of equal size."""
    model = tiny_model("llama", vocab_size=259)
    parent = tmp_path_factory.mktemp("peft")
    return [
        save_adapter(model, parent / str(seed), seed=seed, r=4, target_modules="all-linear")
        for seed in range(3)
    ]


@pytest.fixture(scope="module")
def folder(folders: list[Path]) -> Path:
    return folders[0]


@pytest.fixture(scope="module")
def package(folder: Path) -> Path:
    """The same as one file."""
    path = folder.with_name("bot.safetensors")
    with path.open("wb") as output:
        pack(folder, output)
    return path


@pytest.fixture(scope="module")
def environment() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield patch


@pytest.fixture(scope="module")
def hub(environment: pytest.MonkeyPatch, folders: list[Path]) -> Iterator[Hub]:
    with running_hub() as hub:
        environment.setenv("HF_ENDPOINT", hub.address)
        environment.setenv("HF_HUB_OFFLINE", "0")
        for folder, revision in zip(folders, ("main", "v2", "v3"), strict=True):
            hub.put("acme/Bot", revision, folder)
        hub.put("acme/Deep", "v2", folders[1], prefix="some/where/")
        hub.gated.add("acme/gated")
        for name, said in (("huge", 1 << 40), ("growing", 5), ("broken", 10)):
            hub.put(f"acme/{name}", "main", folders[0])
            hub.files[f"acme/{name}", "main"]["adapter_model.safetensors"] = b"x" * 10
            hub.sizes[f"acme/{name}", "adapter_model.safetensors"] = said
        yield hub


@pytest.fixture(scope="module")
def bucket(environment: pytest.MonkeyPatch, folder: Path, package: Path) -> Iterator[Any]:
    """A store that has a folder and a package."""
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
    }  # fmt: skip
    for name, value in settings.items():
        environment.setenv(name, value)
    boto3.client("s3", endpoint_url=settings["AWS_ENDPOINT_URL"]).create_bucket(Bucket="adapters")
    store = obstore.store.from_url("s3://adapters/team")
    for path in folder.iterdir():
        obstore.put(store, f"bot/{path.name}", path.read_bytes())
    obstore.put(store, "bot.safetensors", package.read_bytes())
    yield store
    server.stop()


@pytest.fixture(scope="module")
def artifacts() -> Iterator[Registry]:
    with running_registry() as registry:
        yield registry


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, roomy_base: Path, hub: Hub, bucket: Any,
    artifacts: Registry, package: Path,
) -> Iterator[RunningServer]:  # fmt: skip
    size = package.stat().st_size
    with RunningServer(
        tmp_path_factory.mktemp("server"), roomy_base, "--hub-allow", "acme/*",
        "--object-allow", "s3://adapters/team", "--object-allow", "s3://missing/",
        "--oci-allow", f"{artifacts.host}/acme/*",
        "--max-upload", str(2 * size), "--max-tenant-bytes", str(5 * size // 2),
    ) as server:  # fmt: skip
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with server.client() as client:
        yield client
        for adapter in client.adapters.list():
            client.adapters.delete(adapter.reference.rpartition(":")[0])


def staged(server: RunningServer) -> list[Path]:
    return list((server.log.parent / "store" / "staging").iterdir())


URIS = ["s3://adapters/team/bot", "s3://adapters/team/bot.safetensors", "hf://acme/Bot"]


@pytest.mark.parametrize("uri", URIS)
def test_what_is_imported_is_what_an_upload_brings(
    server: RunningServer, client: Client, folder: Path, uri: str
) -> None:
    imported = client.adapters.import_from("bot", uri)
    assert imported.source == "import"
    expected = f"hf://acme/Bot@{Hub.commit('main')}" if uri.startswith("hf") else uri
    assert imported.origin == client.adapters.get("bot").origin == expected
    assert client.generate("hello", adapter="bot", max_tokens=3, temperature=0).adapter is not None
    uploaded = client.adapters.upload("bot", folder)
    assert (uploaded.digest, uploaded.version) == (imported.digest, imported.version)
    assert [adapter.name for adapter in client.adapters.list(source="import")] == ["bot"]
    assert staged(server) == []


def test_the_command_line_imports(server: RunningServer) -> None:
    command = [
        sys.executable, "-m", "loramux.cli", "import", "hf://acme/Bot@main", "--ttl", "1h",
        "--json", "--server", server.target,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    said = json.loads(done.stdout)
    assert (said["name"], said["source"]) == ("bot", "import")
    assert said["expires_at"] is not None


def test_the_command_line_imports_an_artifact(
    server: RunningServer, client: Client, artifacts: Registry, folder: Path
) -> None:
    digest = artifacts.put_folder("acme/trial", "v1", folder)
    command = [sys.executable, "-m", "loramux.cli", "import", "--server", server.target]
    named = f"oci://{artifacts.host}/acme/trial"
    subprocess.run([*command, f"{named}:v1"], capture_output=True, timeout=60, check=True)
    imported = client.adapters.get("trial")
    assert imported.origin == f"{named}@{digest}"
    assert client.adapters.upload("bot", folder).digest == imported.digest
    other = named.replace("acme", "other")
    done = subprocess.run([*command, other], capture_output=True, text=True, timeout=60)
    assert done.returncode and f"--oci-allow '{artifacts.host}/other/*'" in done.stderr


def test_a_gateway_has_them_imported(server: RunningServer, client: Client, tmp_path: Path) -> None:
    load = "/v1/load_lora_adapter"
    with RunningGateway(tmp_path, server.target) as gateway:
        for uri in ("s3://adapters/team/bot", "hf://acme/Bot"):
            assert gateway.post(load, {"lora_name": "bot", "lora_path": uri}).status == 200
        found = gateway.post(load, {"lora_name": "bot", "lora_path": "hf://acme/Bot@v2"})
        assert (found.status, found.error["param"]) == (400, "lora_name")
        found = gateway.post(load, {"lora_name": "bot", "lora_path": "hf://acme/nothing"})
        assert (found.status, found.error["param"]) == (404, "lora_path")
    assert [each.source for each in client.adapters.list()] == ["import"]


async def test_the_asynchronous_client_imports(server: RunningServer, client: Client) -> None:
    async with AsyncClient(server.target) as aio:
        imported = await aio.adapters.import_from("bot", URIS[0])
        assert imported == client.adapters.get("bot")


def test_other_content_is_the_next_version(client: Client) -> None:
    first = client.adapters.import_from("bot", "hf://acme/Bot")
    with pytest.raises(AlreadyExistsError):
        client.adapters.import_from("bot", "hf://acme/Bot@v2", must_not_exist=True)
    second = client.adapters.import_from("bot", "hf://acme/Deep@v2/some/where")
    assert second.version == first.version + 1
    assert second.origin == f"hf://acme/Deep@{Hub.commit('v2')}/some/where"


@pytest.mark.parametrize(
    ("uri", "error", "reason"),
    [
        ("s3://adapters/other/bot", PermissionDeniedError, "SOURCE_NOT_ALLOWED"),
        ("hf://other/bot", PermissionDeniedError, "SOURCE_NOT_ALLOWED"),
        ("gs://adapters/team/bot", PermissionDeniedError, "SOURCE_NOT_ALLOWED"),
        ("file:///etc/passwd", InvalidArgumentError, "INVALID_FIELD"),
        ("s3://adapters/team/../other/bot", InvalidArgumentError, "INVALID_FIELD"),
        ("s3://adapters/team/none", NotFoundError, "SOURCE_NOT_FOUND"),
        ("s3://adapters/team/none.safetensors", NotFoundError, "SOURCE_NOT_FOUND"),
        ("s3://missing/bot", NotFoundError, "SOURCE_NOT_FOUND"),
        ("hf://acme/none", NotFoundError, "SOURCE_NOT_FOUND"),
        ("hf://acme/gated", FailedPreconditionError, "SOURCE_NOT_READABLE"),
        ("hf://acme/huge", InvalidArgumentError, "INVALID_FIELD"),
        ("hf://acme/growing", UnavailableError, "SOURCE_UNAVAILABLE"),
        ("hf://acme/broken", InvalidArgumentError, "INVALID_ADAPTER_FILE"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_said_and_leaves_nothing(
    server: RunningServer, client: Client, uri: str, error: type[LoramuxError], reason: str
) -> None:
    with pytest.raises(error) as caught:
        client.adapters.import_from("bot", uri)
    assert caught.value.reason == reason
    assert client.adapters.list() == []
    assert staged(server) == []


def test_a_name_that_cannot_be_is_refused_before_anything_is_fetched(
    client: Client, hub: Hub
) -> None:
    hub.asked.clear()
    with pytest.raises(InvalidArgumentError) as caught:
        client.adapters.import_from("No Name", "hf://acme/Bot")
    assert caught.value.field == "name"
    assert hub.asked == []


def test_imports_count_as_what_a_tenant_stores(client: Client, hub: Hub) -> None:
    for revision in ("main", "v2"):
        client.adapters.import_from("team/one", f"hf://acme/Bot@{revision}")
    hub.asked.clear()
    with pytest.raises(ResourceExhaustedError, match="tenant 'team' uses") as caught:
        client.adapters.import_from("team/one", "hf://acme/Bot@v3")
    assert (caught.value.reason, caught.value.quota) == ("STORAGE_QUOTA_EXCEEDED", "tenant:team")
    assert not any("/resolve/" in path for path in hub.asked)  # not a byte came
    client.adapters.delete("team/one:2")
    assert client.adapters.import_from("team/one", "hf://acme/Bot@v3").version == 3
