"""vLLM's requests that bring adapters and take them away, at a real gateway over HTTP."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from loramux.v1 import adapters_pb2, uploads_pb2
from loramux_server.access.caller import Role
from tests.support.adapters import save_adapter
from tests.support.gateway import Answer, RunningGateway
from tests.support.models import tiny_model
from tests.support.observed import OTHER, TENANT, Observed

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
ASKED: dict[str, Any] = {"max_tokens": 2, "temperature": 0}


@dataclass(frozen=True)
class Site:
    """A gateway, the server behind it, and the folder that it may read."""

    gateway: RunningGateway
    observed: Observed
    root: Path

    def shown(self, key: str) -> str:
        return f"Bearer {self.observed.keys[key].text}"

    def post(self, path: str, body: object, key: str = Role.PUBLISHER) -> Answer:
        return self.gateway.post(path, body, authorization=self.shown(key))

    def load(self, name: str, path: str | Path, key: str = Role.PUBLISHER, **more: Any) -> Answer:
        return self.post(LOAD, {"lora_name": name, "lora_path": str(path), **more}, key)

    def unload(self, name: str, key: str = Role.PUBLISHER, **more: Any) -> Answer:
        return self.post(UNLOAD, {"lora_name": name, **more}, key)

    def text(self, name: str, key: str = Role.USER) -> Answer:
        return self.post("/v1/completions", {"model": name, "prompt": "Once", **ASKED}, key)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters below one folder."""
    parent = tmp_path_factory.mktemp("there") / "adapters"
    model = tiny_model("llama", vocab_size=259)
    return [
        save_adapter(model, parent / f"Bot{seed}", seed=seed, r=4, target_modules="all-linear")
        for seed in range(2)
    ]


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, observed: Observed, folders: list[Path]
) -> Iterator[Site]:
    root = folders[0].parent
    arguments = ("--lora-path-root", str(root))
    folder = tmp_path_factory.mktemp("gateway")
    with RunningGateway(folder, observed.server.target, *arguments) as gateway:
        yield Site(gateway, observed, root)


@pytest.fixture
def bot(site: Site, folders: list[Path]) -> Iterator[Path]:
    """What is loaded as `bot`."""
    found = site.load("bot", folders[0])
    assert (found.status, found.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert found.body.startswith(b"Success")
    yield folders[0]
    assert site.unload("bot").status == 200


def refused(found: Answer) -> tuple[int, str]:
    """Return the status, and the field that the error and its message name."""
    assert found.error["message"].startswith(found.error["param"])
    return found.status, found.error["param"]


def test_what_is_loaded_answers_until_it_is_unloaded(site: Site, folders: list[Path]) -> None:
    assert site.text("new").status == 404
    assert site.load("new", folders[0]).status == 200
    with site.observed.server.client(key=site.observed.keys[Role.USER].text) as client:
        found = client.adapters.get("new")
        assert (found.tenant, found.source) == (TENANT, "upload")
        wanted = client.generate("Once", adapter="new", **ASKED).text
    assert site.text("new").json["choices"][0]["text"] == wanted
    gone = site.unload("new", lora_int_id=7)
    assert (gone.status, gone.body[:7]) == (200, b"Success")
    assert site.text("new").status == 404
    assert refused(site.unload("new")) == (404, "lora_name")


def test_a_name_gets_other_content_only_in_place(
    site: Site, bot: Path, folders: list[Path]
) -> None:
    before = site.gateway.get("/v1/models/bot", authorization=site.shown(Role.USER)).json
    assert site.load("bot", bot).status == 200  # what it has already
    found = site.load("bot", folders[1])
    assert refused(found) == (400, "lora_name")
    assert "load_inplace" in found.error["message"]
    assert site.load("bot", folders[1], load_inplace=True).status == 200
    after = site.gateway.get("/v1/models/bot", authorization=site.shown(Role.USER)).json
    assert after["version"] == before["version"] + 1
    assert after["digest"] != before["digest"]


def test_paths_begin_at_the_folder_or_are_absolute(site: Site, bot: Path) -> None:
    (site.root / "latest").symlink_to(bot.name)
    for path in (bot.name, f"{bot.name}/", f"./{bot.name}", "latest", site.root / "latest"):
        assert site.load("bot", path).status == 200, path


def test_rights_are_those_of_the_key(site: Site, bot: Path) -> None:
    for role in (Role.VIEWER, Role.USER):
        assert site.load("x", bot, role).status == 403
        assert site.load("x", "hf://acme/bot", role).status == 403
        assert site.unload("bot", role).status == 403
    assert refused(site.unload(f"{TENANT}/bot", OTHER))[0] == 404
    assert site.text("bot", OTHER).status == 404
    body = {"lora_name": "x", "lora_path": "nothing"}
    assert site.gateway.post(LOAD, body).status == 401  # and is not told that nothing is there
    assert site.gateway.post(UNLOAD, {"lora_name": "bot"}).status == 401


def test_what_cannot_be_loaded_is_named(site: Site, tmp_path: Path) -> None:
    (site.root / "empty").mkdir()
    (site.root / "away").symlink_to(tmp_path)
    elsewhere = (tmp_path, "/etc", "..", ".", "", site.root, "Bot0/../..", "a\0b", "away")
    for path in elsewhere:
        assert refused(site.load("x", path)) == (400, "lora_path"), path
    assert refused(site.load("x", site.root / "nothing")) == (404, "lora_path")
    found = site.load("x", "empty")
    assert refused(found) == (400, "lora_path")
    assert "adapter_config.json" in found.error["message"]
    assert str(site.root) not in found.error["message"]
    for name in ("Bot Name", "bot:1", ""):
        assert refused(site.load(name, "Bot0")) == (400, "lora_name"), name
    assert refused(site.load("x", "file:///etc")) == (400, "lora_path")
    found = site.load("x", "hf://umbrella/bot")
    assert (found.status, found.error["code"]) == (403, "source_not_allowed")
    for path, body, field in (
        (LOAD, {"lora_name": "x"}, "lora_path"),
        (LOAD, {"lora_path": "Bot0"}, "lora_name"),
        (LOAD, {"lora_name": "x", "lora_path": "Bot0", "load_inplace": 1}, "load_inplace"),
        (LOAD, {"lora_name": "x", "lora_path": "Bot0", "base_model_name": "b"}, "base_model_name"),
        (UNLOAD, {}, "lora_name"),
    ):
        found = site.post(path, body)
        assert (found.status, found.error["param"]) == (400, field)
    assert site.gateway.post(LOAD, b"{}", content_type="text/plain").status == 415


class Names:
    """A server that has adapters by name, and looks at nothing else."""

    def __init__(self) -> None:
        self.held: set[str] = set()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method.rpartition("/")[2]
        answer = {
            "ImportAdapter": self._import, "StartUpload": self._start,
            "DeleteAdapter": self._delete, "GetServerInfo": self._info,
        }.get(method)  # fmt: skip
        return answer and grpc.unary_unary_rpc_method_handler(answer)

    def _import(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        asked = adapters_pb2.ImportAdapterRequest.FromString(request)
        response = adapters_pb2.ImportAdapterResponse(adapter=self._added(asked.name))
        return response.SerializeToString()

    def _start(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Take an upload as if its bytes were there already."""
        asked = uploads_pb2.StartUploadRequest.FromString(request)
        response = uploads_pb2.StartUploadResponse(adapter=self._added(asked.header.name))
        return response.SerializeToString()

    def _delete(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        name = adapters_pb2.DeleteAdapterRequest.FromString(request).name
        if name not in self.held:
            context.abort(grpc.StatusCode.NOT_FOUND, "there is none")
        self.held.remove(name)
        return b""

    def _info(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        return b""

    def _added(self, name: str) -> adapters_pb2.Adapter:
        self.held.add(name)
        return adapters_pb2.Adapter(name=name)


@contextmanager
def listening(names: Names) -> Iterator[str]:
    """Yield where `names` are served."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((names,))  # type: ignore[arg-type]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def test_all_servers_behind_have_what_is_loaded(tmp_path: Path, folders: list[Path]) -> None:
    names = [Names() for _ in range(3)]
    with ExitStack() as exit:
        targets = [exit.enter_context(listening(each)) for each in names]
        arguments = ("--lora-path-root", str(folders[0].parent))
        gateway = exit.enter_context(RunningGateway(tmp_path, targets, *arguments))
        for name, path in (("sent", "Bot0"), ("fetched", "hf://acme/bot")):
            assert gateway.post(LOAD, {"lora_name": name, "lora_path": path}).status == 200
        assert [each.held for each in names] == [{"sent", "fetched"}] * 3
        names[1].held.remove("sent")  # one lost it
        statuses = [gateway.post(UNLOAD, {"lora_name": "sent"}).status for _ in range(2)]
        assert statuses == [200, 404]
        assert [each.held for each in names] == [{"fetched"}] * 3


def test_without_the_option_no_path_is_read(tmp_path: Path, folders: list[Path]) -> None:
    with (
        listening(Names()) as target,
        RunningGateway(tmp_path, target) as gateway,
    ):
        found = gateway.post(LOAD, {"lora_name": "x", "lora_path": str(folders[0])})
        assert refused(found) == (400, "lora_path")
        assert "--lora-path-root" in found.error["message"]
