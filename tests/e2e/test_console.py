"""What the console's page asks of a real gateway, in front of a real server with keys."""

import hashlib
import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from loramux._upload import CHUNK_BYTES
from loramux.errors import AbortedError, PermissionDeniedError
from loramux.gateway.console import files
from loramux_server.access.caller import Role
from tests.support.adapters import save_adapter
from tests.support.console import API, Site, serving
from tests.support.gateway import RunningGateway
from tests.support.models import tiny_model
from tests.support.packages import packed
from tests.support.polling import eventually

PAGE = Path(files.__file__).parent / "page"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Site]:
    with serving(tmp_path_factory.mktemp("console"), tiny_base, "acme") as site:
        yield site


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Some that fit, of which the first is too large for one piece."""
    folder = tmp_path_factory.mktemp("packages")
    model = tiny_model("llama", vocab_size=259)
    for seed, rank in enumerate((256, 4, 4, 4)):
        save_adapter(model, folder / str(seed), seed=seed, r=rank, target_modules="all-linear")
    return [packed(folder / str(seed)) for seed in range(4)]


def declared(name: str, package: bytes) -> dict[str, object]:
    digest = hashlib.sha256(package).hexdigest()
    return {"name": name, "size_bytes": len(package), "sha256": digest}


def upload(site: Site, name: str, package: bytes) -> None:
    started = site.post("uploads/start", declared(name, package)).json
    chunks = f"uploads/chunks?upload_id={started['upload_id']}&offset=0"
    assert site.put(chunks, package).json == {"committed_bytes": len(package)}
    assert site.post("uploads/finish", {"upload_id": started["upload_id"]}).status == 200


def reported(site: Site, role: Role) -> Generator[tuple[str, Any], None, None]:
    """Yield what a page of a caller is told, as it comes."""
    connection = site.gateway.connect()
    headers = {"authorization": f"Bearer {site.keys[role]}"}
    connection.request("GET", API + "live", headers=headers)
    response = connection.getresponse()
    assert response.status == 200
    try:
        while (name := response.readline()).startswith(b"event: "):
            data = response.readline().removeprefix(b"data: ")
            assert response.readline() == b"\n"
            yield name.decode().split()[1], json.loads(data)
    finally:
        connection.close()


def test_without_the_option_there_is_none(tmp_path: Path) -> None:
    with RunningGateway(tmp_path, "127.0.0.1:1") as gateway:
        for path in ("/", "/console", "/console/main.js", API + "server"):
            assert gateway.get(path).status == 404


def test_the_page_is_whole_and_guarded(site: Site) -> None:
    moved = site.gateway.get("/")
    assert (moved.status, moved.headers["location"]) == (307, "console")
    moved = site.gateway.get("/console/")
    assert (moved.status, moved.headers["location"]) == (307, "../console")
    page = site.gateway.get("/console")
    names = re.findall(r'(?:href|src)="(console/[^"]+)"', page.body.decode())
    assert {Path(name).suffix for name in names} == {".css", ".js", ".svg"}
    scripts = {f"console/{name}" for path in PAGE.glob("*.js")
               for name in re.findall(r'from "\./([^"]+)"', path.read_text())}  # fmt: skip
    for path in ["/console", *(f"/{name}" for name in {*names, *scripts})]:
        found = site.gateway.get(path)
        assert found.status == 200, path
        assert "default-src 'none'" in found.headers["content-security-policy"]
        assert "unsafe" not in found.headers["content-security-policy"]
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["referrer-policy"] == "no-referrer"
        again = site.gateway.get(path, if_none_match=found.headers["etag"])
        assert (again.status, again.body) == (304, b"")
    for wrong in ("nothing.js", "../app.py", "..%2fapp.py", "api.py"):
        assert site.gateway.get(f"/console/{wrong}").status == 404


def test_the_page_reads_no_markup_and_asks_nobody_else() -> None:
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|innerHTML|outerHTML|insertAdjacent|document\.write", text)
        assert not re.search(r"\beval\b|new Function|<style|\sstyle=|<script>|\son\w+=\"", text)


def test_whose_page_it_is_shows_before_anything_else(site: Site) -> None:
    shown = f"Bearer {site.keys[Role.ADMIN]}"
    for foreign in ("cross-site", "same-site", "anything"):
        found = site.gateway.get(API + "server", authorization=shown, sec_fetch_site=foreign)
        assert (found.status, found.error["reason"]) == (403, "FOREIGN_PAGE")
    own = site.gateway.get(API + "server", authorization=shown, sec_fetch_site="same-origin")
    assert own.json["info"]["base_model"] == "tiny"
    assert own.json["servers"] == 1
    assert own.headers["cache-control"] == "no-store"
    found = site.gateway.post(
        API + "adapters/delete", b'{"name": "x"}', authorization=shown, content_type="text/plain"
    )
    assert found.status == 415


def test_errors_are_those_of_the_server(site: Site) -> None:
    found = site.gateway.get(API + "server")
    assert (found.status, found.error["status"]) == (401, "UNAUTHENTICATED")
    assert site.gateway.get(API + "live").status == 401
    with site.client(Role.USER) as client, pytest.raises(PermissionDeniedError) as refused:
        client.adapters.delete("anything")
    found = site.post("adapters/delete", {"name": "anything"}, Role.USER)
    assert (found.status, found.error["message"]) == (403, str(refused.value))
    for path, body, field in (
        ("aliases/set", {"name": "x", "alias": "y"}, "weights"),
        ("adapters/delete", {"name": "x", "force": True}, "force"),
        ("adapters/delete", {"name": 5}, "name"),
        ("uploads/start", {"name": "x", "size_bytes": 1 << 70, "sha256": ""}, "size_bytes"),
        ("adapters/delete?server=1", {"name": "x"}, "server"),
        ("adapters/delete?server=x", {"name": "x"}, "server"),
    ):
        found = site.post(path, body)
        assert (found.status, found.error["field"]) == (400, field), path
    assert site.get("aliases").error["field"] == "name"
    assert site.get("nothing").status == 404
    assert site.get("adapters/delete").status == 405


def test_a_package_comes_in_pieces_and_goes_on_where_it_was(
    site: Site, packages: list[bytes]
) -> None:
    package = packages[0]
    half = 400 << 10
    assert len(package) > half + CHUNK_BYTES  # so that the rest is more than one piece
    header = declared("poet", package)
    refused = site.post("uploads/start", header, Role.USER)
    assert (refused.status, refused.error["status"]) == (403, "PERMISSION_DENIED")
    started = site.post("uploads/start", header).json
    upload = f"uploads/chunks?upload_id={started['upload_id']}&offset="
    assert site.put(f"{upload}0", package[:half]).json == {"committed_bytes": half}
    again = site.post("uploads/start", header).json
    assert (again["upload_id"], again["committed_bytes"]) == (started["upload_id"], half)
    found = site.put(f"{upload}{half + 1}", package[half + 1 :])
    assert (found.status, found.error["field"]) == (400, "offset")
    empty = site.put(f"{upload}{half}", b"")
    assert (empty.status, empty.error["field"]) == (400, "chunk")
    unfinished = site.post("uploads/finish", {"upload_id": started["upload_id"]})
    assert (unfinished.status, unfinished.error["field"]) == (400, "header.size_bytes")
    site.put(f"{upload}{half}", package[half:])
    done = site.post("uploads/finish", {"upload_id": started["upload_id"]}).json
    assert done["adapter"]["digest"] == f"sha256:{header['sha256']}"
    assert not done["already_existed"]
    assert site.post("uploads/start", header).json["already_existed"]
    with site.client() as client:
        assert client.adapters.get("poet").rank == 256
    assert site.put("uploads/chunks?upload_id=0&offset=0", package).error["reason"] == (
        "UPLOAD_NOT_FOUND"
    )


def test_an_alias_moves_only_from_where_it_was_seen(site: Site, packages: list[bytes]) -> None:
    for package in packages[1:3]:
        upload(site, "singer", package)
    first = {"name": "singer", "alias": "stable", "weights": {"1": 1}, "expected": {}}
    assert site.post("aliases/set", first).json == {"1": 1}
    with site.client(Role.PUBLISHER) as client, pytest.raises(AbortedError) as conflict:
        client.adapters.set_alias("singer", "stable", version=1, expected={})
    found = site.post("aliases/set", first)
    assert (found.status, found.error["status"]) == (409, "ABORTED")
    assert found.error["message"] == str(conflict.value)
    split = first | {"weights": {"1": 9, "2": 1}, "expected": {"1": 1}}
    assert site.post("aliases/set", split).json == {"1": 9, "2": 1}
    assert site.get("aliases?name=singer").json == {"stable": {"1": 9, "2": 1}}
    named = {"name": "singer", "alias": "stable"}
    assert site.post("aliases/roll-back", named).json == {"1": 1}
    moves = site.get("aliases/moves?name=singer&alias=stable").json
    assert [move["after"] for move in moves] == [{"1": 1}, {"1": 9, "2": 1}, {"1": 1}]
    assert all(move["moved_by"].startswith("console (key ") for move in moves)
    assert site.post("aliases/delete", named | {"expected": {"2": 1}}).status == 409
    assert site.post("aliases/delete", named | {"expected": {"1": 1}}).status == 200
    assert site.get("aliases?name=singer").json == {}


def test_a_page_is_notified_of_changes_and_of_load_if_its_caller_may(
    site: Site, packages: list[bytes]
) -> None:
    events = reported(site, Role.ADMIN)
    _, load = next(each for each in events if each[0] == "load")
    assert load["load"]["kv_blocks"] > 0
    assert load["refused"] is load["rates"] is None
    _, load = next(each for each in events if each[0] == "load" and each[1]["rates"])
    assert load["rates"]["tokens_per_second"] == 0
    events.close()
    events = reported(site, Role.VIEWER)
    _, load = next(each for each in events if each[0] == "load")
    assert (load["load"], load["refused"]["status"]) == (None, "PERMISSION_DENIED")
    upload(site, "dancer", packages[3])
    assert site.post("adapters/pin", {"name": "dancer"}).error["status"] == "PERMISSION_DENIED"
    for path, is_pinned in (("adapters/pin", True), ("adapters/unpin", False)):
        assert site.post(path, {"name": "dancer"}, Role.ADMIN).json["is_pinned"] is is_pinned
    assert site.post("adapters/delete", {"name": "dancer"}).json == {}
    seen = []
    for name, said in events:
        if name == "change" and said["adapter"]["name"] == "dancer":
            seen.append(said["kind"])
            if said["kind"] == "deleted":
                break
    events.close()
    assert (seen[0], "updated" in seen) == ("registered", True)


def test_pages_that_go_end_what_they_watch(site: Site) -> None:
    def num_tasks() -> float:
        return site.server.metrics()["loramux_loop_tasks"]

    before = num_tasks()
    pages = [reported(site, Role.VIEWER) for _ in range(8)]
    for events in pages:
        next(events)
    assert num_tasks() >= before + 8
    for events in pages:
        events.close()
    assert eventually(lambda: num_tasks() < before + 4)


def test_a_gateway_that_is_stopped_does_not_wait_for_pages(site: Site, tmp_path: Path) -> None:
    with RunningGateway(
        tmp_path, site.server.target, "--console", "--drain-timeout", "3600"
    ) as gateway:
        events = reported(Site(gateway, site.server, site.keys), Role.VIEWER)
        next(events)
        assert gateway.stop() == 0  # within two minutes, which is the patience of the test
        assert [name for name, _ in events if name == "error"] == []
