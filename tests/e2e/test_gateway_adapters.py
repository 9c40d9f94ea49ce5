"""`/v1/adapters` of the gateway, in front of a real server with keys."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loramux._upload import CHUNK_BYTES
from loramux_server.access.caller import Role
from tests.support.adapters import save_adapter
from tests.support.console import Site as Served
from tests.support.console import serving
from tests.support.gateway import Answer
from tests.support.models import tiny_model
from tests.support.packages import packed
from tests.support.polling import eventually

ADAPTERS = "/v1/adapters"


@dataclass(frozen=True)
class Site:
    """A gateway, and some packages that its server can serve."""

    served: Served
    packages: list[bytes]

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        role: Role = Role.ADMIN,
        **headers: str,
    ) -> Answer:
        shown = {"authorization": f"Bearer {self.served.keys[role]}"} | headers
        if method == "GET":
            return self.served.gateway.get(ADAPTERS + path, **shown)
        return self.served.gateway.ask_json(method, ADAPTERS + path, body, **shown)

    def upload(self, path: str, package: bytes, role: Role = Role.PUBLISHER, **more: str) -> Answer:
        headers = {
            "authorization": f"Bearer {self.served.keys[role]}",
            "content_type": "application/octet-stream",
            "x_content_sha256": hashlib.sha256(package).hexdigest(),
        }
        return self.served.gateway.put(ADAPTERS + path, package, **headers | more)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Site]:
    folder, model = tmp_path_factory.mktemp("adapters"), tiny_model("llama", vocab_size=259)
    for seed, rank in enumerate((256, 4, 4, 256)):
        save_adapter(model, folder / str(seed), seed=seed, r=rank, target_modules="all-linear")
    packages = [packed(folder / str(seed)) for seed in range(4)]
    with serving(folder / "site", tiny_base, "acme") as served:
        yield Site(served, packages)


def weights(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    return answer.json["weights"]


def test_a_package_becomes_a_version_that_answers(site: Site) -> None:
    assert len(site.packages[0]) > CHUNK_BYTES  # more than one piece
    first = site.upload("/up?ttl_seconds=3600", site.packages[0])
    assert first.status == 201, first.body
    assert (first.json["name"], first.json["tenant"], first.json["version"]) == ("up", "acme", 1)
    assert first.json["expires_at"].endswith("Z")
    again = site.upload("/up", site.packages[0])
    assert (again.status, again.json["version"]) == (200, 1)
    assert site.upload("/up", site.packages[1]).json["version"] == 2
    found = site.ask("GET", "/up:1").json
    assert (found["digest"], found["versions"]) == (first.json["digest"], [2, 1])
    assert found["object"] == "adapter"
    (listed,) = site.ask("GET", "?prefix=up").json["data"]
    assert (listed["version"], listed["reference"]) == (2, "up:2")
    every = site.ask("GET", "?prefix=up&all_versions=true").json["data"]
    assert [each["version"] for each in every] == [2, 1]
    body = {"model": "up:1", "prompt": "x", "max_tokens": 1}
    key = f"Bearer {site.served.keys[Role.USER]}"
    assert site.served.gateway.post("/v1/completions", body, authorization=key).status == 200
    assert site.ask("GET", "/up?tenant=acme").json["version"] == 2
    assert site.ask("DELETE", "/up:2", role=Role.PUBLISHER).json["deleted"] is True
    assert site.ask("GET", "/up").json["version"] == 1
    assert site.ask("DELETE", "/up").status == 200
    gone = site.ask("GET", "/up")
    assert (gone.status, gone.error["code"]) == (404, "adapter_not_found")


def test_an_upload_goes_on_where_it_broke_off(site: Site) -> None:
    package = site.packages[3]  # of which the server has nothing yet
    digest = hashlib.sha256(package).hexdigest()
    connection = site.served.gateway.connect()
    connection.putrequest("PUT", f"{ADAPTERS}/broken")
    for name, value in (
        ("authorization", f"Bearer {site.served.keys[Role.PUBLISHER]}"),
        ("content-type", "application/octet-stream"),
        ("content-length", str(len(package))),
        ("x-content-sha256", digest),
    ):
        connection.putheader(name, value)
    connection.endheaders(package[: CHUNK_BYTES + 1000])
    declared = {"name": "broken", "size_bytes": len(package), "sha256": digest}

    def num_committed() -> int:
        found = site.served.post("uploads/start", declared).json["committed_bytes"]
        assert isinstance(found, int)
        return found

    assert eventually(lambda: num_committed() == CHUNK_BYTES)
    connection.close()
    assert site.upload("/broken", package).status == 201


def test_aliases_move_by_compare_and_set_and_back(site: Site) -> None:
    for package in site.packages[1:]:
        assert site.upload("/moving", package).status == 201
    live = "/moving/aliases/live"
    assert weights(site.ask("PUT", live, {"version": 1, "expected": {}})) == {"1": 1}
    assert weights(site.ask("PUT", live, {"weights": {"1": 9, "2": 1}, "expected": 1})) == {
        "1": 9, "2": 1,
    }  # fmt: skip
    stale = site.ask("PUT", live, {"version": 2, "expected": 1})
    assert stale.status == 409, stale.body
    assert site.ask("GET", "/moving").json["all_aliases"] == {"live": {"1": 9, "2": 1}}
    assert weights(site.ask("POST", f"{live}/rollback", {})) == {"1": 1}
    moves = site.ask("GET", f"{live}/moves").json["data"]
    assert moves[-1]["before"] == {}
    assert "http" in moves[0]["moved_by"]
    assert site.ask("DELETE", f"{live}?expected=2").status == 409
    assert site.ask("DELETE", f"{live}?expected=1").json["deleted"] is True
    assert site.ask("GET", "/moving").json["all_aliases"] == {}


def test_pins_and_times_to_live(site: Site) -> None:
    assert site.upload("/kept", site.packages[1]).status == 201
    assert site.ask("PUT", "/kept/pin").json["pinned"] is True
    assert site.ask("DELETE", "/kept/pin").json["pinned"] is False
    assert site.ask("PUT", "/kept/ttl", {"seconds": 60}).json["expires_at"]
    assert site.ask("PUT", "/kept/ttl", {"seconds": None}).json["expires_at"] is None
    refused = site.ask("POST", "/kept/import", {"uri": "hf://nobody/nothing"})
    assert refused.status in (400, 403), refused.body
    assert refused.error["message"]


def test_the_rights_are_those_of_the_caller(site: Site) -> None:
    denied = site.upload("/mine", site.packages[1], role=Role.USER)
    assert (denied.status, denied.error["code"]) == (403, "permission_denied")
    assert denied.headers["connection"] == "close"
    assert site.ask("GET", "", role=Role.VIEWER).status == 200
    nobody = site.served.gateway.get(ADAPTERS)
    assert (nobody.status, nobody.error["code"]) == (401, "unauthenticated")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("PUT", "/No", b"x", 400, "name"),
        ("PUT", "/x?must_not_exist=maybe", b"x", 400, "must_not_exist"),
        ("PUT", "/x?ttl_seconds=-1", b"x", 400, "ttl_seconds"),
        ("PUT", "/x?ttl=1", b"x", 400, "ttl"),
        ("PUT", "/x/ttl", {"seconds": 0}, 400, "seconds"),
        ("PUT", "/x/ttl", {"second": 1}, 400, "second"),
        ("PUT", "/x/aliases/live", {}, 400, "version"),
        ("PUT", "/x/aliases/live", {"version": 1, "weights": {"1": 1}}, 400, "version"),
        ("PUT", "/x/aliases/live", {"version": "1"}, 400, "version"),
        ("POST", "/x/import", {}, 400, "uri"),
        ("GET", "?tenants=acme", None, 400, "tenants"),
        ("GET", "/x:", None, 400, "name"),
        ("DELETE", "/nothing", None, 404, "name"),
        ("DELETE", "/x/aliases/live?expected=1.5", None, 400, "expected"),
    ],
)
def test_what_is_wrong_is_named(
    site: Site, method: str, path: str, body: object, status: int, param: str
) -> None:
    found = site.upload(path, body) if isinstance(body, bytes) else site.ask(method, path, body)
    assert (found.status, found.error["param"]) == (status, param), found.body


def test_a_package_needs_its_type_digest_and_content(site: Site) -> None:
    package = site.packages[1]
    typed = site.upload("/x", package, content_type="application/x-www-form-urlencoded")
    assert (typed.status, typed.error["code"]) == (415, "unsupported_media_type")
    undigested = site.upload("/x", package, x_content_sha256="")
    assert (undigested.status, undigested.error["param"]) == (400, "x-content-sha256")
    other = site.upload("/x", package, x_content_sha256="0" * 64)
    assert other.status == 400, other.body
    assert site.ask("GET", "/x").status == 404
