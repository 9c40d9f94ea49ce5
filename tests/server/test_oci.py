"""What is read of registries of OCI artifacts."""

import base64
import gzip
import io
import json
import socketserver
import stat
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from requests.exceptions import InvalidSchema

from loramux.errors import (
    CancelledError,
    FailedPreconditionError,
    InvalidArgumentError,
    LoramuxError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from loramux_server.sources import archive as archives
from loramux_server.sources.archive import ArchiveError, members
from loramux_server.sources.image_layers import Layers
from loramux_server.sources.oci import OciFiles, OciUri, parse_uri
from loramux_server.sources.policy import Sources
from loramux_server.sources.registry import Registry as Asked
from loramux_server.sources.registry_credentials import credentials_for
from tests.support.http_answers import answering
from tests.support.registry import (
    LAYER,
    SECRET,
    TITLE,
    USER,
    Registry,
    archive,
    digest_of,
    running_registry,
)

DIGEST = digest_of(b"")


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with running_registry() as registry:
        yield registry


@pytest.fixture(autouse=True)
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where docker keeps credentials; there are none."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    (tmp_path / "docker").mkdir()
    return tmp_path / "docker" / "config.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files as PEFT saves them, and others."""
    (tmp_path / "saved").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (tmp_path / "saved" / name).write_text(f"what {name} has\n" * 99)
    return tmp_path / "saved"


def opened(registry: Registry, name: str) -> OciFiles:
    return OciFiles(parse_uri(f"oci://{registry.host}/{name}"))


def user(host: str, repository: str) -> str | None:
    """Return the name that is shown to a registry."""
    found = credentials_for(host, repository)
    return found.username if found else None


def has(files: OciFiles, folder: Path) -> bool:
    """Return whether `files` are those of `folder` that packing reads."""
    assert set(files.sizes) == {"adapter_config.json", "adapter_model.safetensors"}
    read = {name: b"".join(files.read(name)) for name in files.sizes}
    assert {name: len(data) for name, data in read.items()} == files.sizes
    return all(data == (folder / name).read_bytes() for name, data in read.items())


def test_a_uri_has_host_repository_and_tag_or_digest() -> None:
    assert parse_uri("oci://ghcr.io/acme/bot") == OciUri("ghcr.io", "acme/bot", "latest")
    assert parse_uri("oci://localhost:5000/a:v1.0") == OciUri("localhost:5000", "a", "v1.0")
    assert parse_uri(f"oci://r.io/a/b@{DIGEST}") == OciUri("r.io", "a/b", DIGEST)


@pytest.mark.parametrize(
    "uri",
    [
        "oci://", "oci://ghcr.io", "oci://ghcr.io/", "oci://ghcr.io/Acme/bot", "oci://u:p@ghcr.io/a",
        "oci://ghcr.io/a//b", "oci://ghcr.io/a/../b", "oci://ghcr.io/a:", "oci://ghcr.io/a:b:c",
        "oci://ghcr.io/a@sha256:12", "oci://ghcr.io/a@md5:12", "oci://ghcr.io/a?x=1", "oci://ghcr.io/a#b",
        "oci://ghcr.io:port/a", "oci://ghcr.io/a/", "oci:ghcr.io/a", "oci://[::1]/a", "oci://g\nh/a",
    ],
)  # fmt: skip
def test_what_is_no_uri_is_refused(uri: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^uri is ") as caught:
        Sources(oci_allow=["*"]).find(uri)
    assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", "uri")


def test_what_is_not_allowed_is_refused() -> None:
    sources = Sources(oci_allow=["ghcr.io/acme/*", "oci://r.io/one"])
    for uri in ("oci://ghcr.io/acme/a/b:1", "oci://r.io/one"):
        assert callable(sources.find(uri))
    for uri in ("oci://ghcr.io/acme2/a", "oci://evil.io/ghcr.io/acme/a", "oci://r.io/one/two"):
        with pytest.raises(PermissionDeniedError, match="--oci-allow"):
            sources.find(uri)
    with pytest.raises(PermissionDeniedError):
        Sources().find("oci://ghcr.io/acme/a")


def test_files_that_are_layers_are_read(registry: Registry, folder: Path) -> None:
    digest = registry.put_folder("acme/bot", "v1", folder)
    files = opened(registry, "acme/bot:v1")
    assert files.origin == f"oci://{registry.host}/acme/bot@{digest}"
    registry.put_folder("acme/bot", "v1", folder.parent / "docker")  # the tag has moved
    assert has(files, folder)
    assert has(opened(registry, f"acme/bot@{digest}"), folder)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_archives_are_read(registry: Registry, folder: Path, mode: str, form: int) -> None:
    deep = f"models/{'long' * 40}/bot"
    data = archive(folder, deep, mode, form)
    other = archive(folder.parent / "docker", "etc", mode, form)
    kind = f"{LAYER}+gzip" if mode == "w:gz" else LAYER
    registry.put("acme/image", "v1", [registry.layer(other, kind), registry.layer(data, kind)])
    files = opened(registry, "acme/image:v1")
    assert has(files, folder)


@pytest.mark.parametrize("whiteout", [
    "models/.wh.old", "models/old/.wh..wh..opq", ".wh..wh..opq", ".wh.models",
])  # fmt: skip
def test_what_a_layer_of_an_image_deletes_is_not_there(
    registry: Registry, folder: Path, whiteout: str
) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as packed:
        packed.addfile(tarfile.TarInfo(f"./{whiteout}"))
        packed.add(folder, "./models/new")
    old, other = archive(folder, "models/old"), archive(folder.parent / "docker", "models/older")
    layers = [registry.layer(old, f"{LAYER}+gzip"), registry.layer(other, f"{LAYER}+gzip")]
    registry.put("acme/moved", "latest", [*layers, registry.layer(file.getvalue())])
    assert has(opened(registry, "acme/moved"), folder)


def test_a_layer_deletes_what_it_names_in_the_layers_below_only() -> None:
    layers = Layers[tuple[int, str]]()
    for number, paths in enumerate([
        ["new.safetensors", ".wh.old.safetensors", "in/.wh.deep"],
        ["old.safetensors", "older.safetensors", "in/deep/er/a", "in/deeper", "new.safetensors"],
        ["/in/deep", "in/other", "./in/other", ".wh..wh..opq"],
        ["anything"],
    ]):  # fmt: skip
        layers.add_below({path: (number, path) for path in paths})
    assert layers.files == {
        "new.safetensors": (0, "new.safetensors"), "older.safetensors": (1, "older.safetensors"),
        "in/deeper": (1, "in/deeper"), "in/other": (2, "./in/other"),
    }  # fmt: skip


def test_of_an_index_one_for_a_platform_is_read(registry: Registry, folder: Path) -> None:
    other = registry.put("acme/many", "other", [])
    digest = registry.put_folder("acme/many", "amd64", folder)
    registry.put_manifest("acme/many", "all", {
        "manifests": [
            {"digest": other, "platform": {"os": "unknown", "architecture": "unknown"}},
            {"digest": digest, "platform": {"os": "linux", "architecture": "amd64"}},
        ]
    })  # fmt: skip
    files = opened(registry, "acme/many:all")
    assert has(files, folder) and files.origin.endswith(digest)


def test_a_package_is_read(registry: Registry) -> None:
    layers = [registry.layer(b"all of it", **{TITLE: "bot.safetensors"})]
    registry.put("acme/package", "latest", layers)
    files = opened(registry, "acme/package")
    assert files.sizes == {"bot.safetensors": 9}
    assert b"".join(files.read("bot.safetensors")) == b"all of it"


@pytest.mark.parametrize("kind", ["closed", "basic"])
def test_credentials_are_those_of_docker(
    registry: Registry, folder: Path, docker: Path, kind: str
) -> None:
    registry.put_folder(f"{kind}/bot", "latest", folder)
    with pytest.raises(FailedPreconditionError, match="credentials"):
        opened(registry, f"{kind}/bot")
    auth = base64.b64encode(f"{USER}:{SECRET}".encode()).decode()
    docker.write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
    assert has(opened(registry, f"{kind}/bot"), folder)


def test_the_narrowest_credentials_count(
    docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "docker-credential-vault"
    helper.write_text(
        '#!/bin/sh\nread host; echo "{\\"Username\\":\\"$host\\",\\"Secret\\":\\"s\\"}"\n'
    )
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    docker.write_text(json.dumps({
        "auths": {
            "https://index.docker.io/v1/": {"username": "hub", "password": "p"},
            "r.io": {"identitytoken": "t"},
            "r.io/acme": {"username": "narrow", "password": "p"},
        },
        "credHelpers": {"ecr.io": "vault"},
    }))  # fmt: skip

    assert user("r.io", "acme/bot") == "narrow"
    assert user("r.io", "acmes/bot") == "<token>"
    assert user("docker.io", "acme/bot") == "hub"
    assert user("ecr.io", "bot") == "ecr.io"
    assert user("other.io", "bot") is None


def test_a_credential_store_knows_docker_hub_by_the_name_of_docker_or_podman(
    docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "docker-credential-keys"
    helper.write_text(
        '#!/bin/sh\nread host; case " $KEPT " in *" $host "*) '
        'echo "{\\"Username\\":\\"$host\\",\\"Secret\\":\\"s\\"}";; '
        "*) echo credentials not found in native keychain; exit 1;; esac\n"
    )
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    docker.write_text(json.dumps({"credsStore": "keys"}))
    of_docker = "https://index.docker.io/v1/"
    for kept, wanted in (
        ("r.io", None), ("docker.io", "docker.io"), (f"docker.io {of_docker}", of_docker),
    ):  # fmt: skip
        monkeypatch.setenv("KEPT", kept)
        assert user("docker.io", "acme/bot") == wanted


def test_what_is_wrong_is_named(registry: Registry, folder: Path, docker: Path) -> None:
    file = {"mediaType": "x", "size": 4, "annotations": {TITLE: "a.safetensors"}}
    right = registry.layer(b"four", **{TITLE: "a.safetensors"})
    registry.put("acme/two", "latest", [right, registry.layer(b"", **{TITLE: "b.safetensors"})])
    registry.put("acme/nothing", "latest", [registry.layer(b"x", **{TITLE: "README.md"})])
    registry.put("acme/zstd", "latest", [registry.layer(b"\x28\xb5\x2f\xfd", f"{LAYER}+zstd")])
    registry.put("acme/gone", "latest", [file | {"digest": digest_of(b"gone")}])
    registry.put("acme/unnamed", "latest", [file | {"digest": "sha512:1"}])
    registry.put_manifest("acme/odd", "latest", ["layers"])
    inner = registry.put_manifest(
        "acme/nested", "inner", {"manifests": [{"digest": right["digest"]}]}
    )
    registry.put_manifest("acme/nested", "latest", {"manifests": [{"digest": inner}]})
    registry.put_manifest("acme/older", "latest", {"schemaVersion": 1})
    for folders in ("one", "two"):
        (folder / folders).mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / folders / name).write_text("")
    many = registry.layer(archive(folder, "in"), f"{LAYER}+gzip")
    registry.put("acme/many", "latest", [many])
    errors: dict[str, tuple[type[LoramuxError], str]] = {
        "acme/none": (NotFoundError, "there is no such artifact"),
        "acme/two": (NotFoundError, "more than one package: 'a.safetensors', 'b.saf"),
        "acme/nothing": (NotFoundError, "there is no adapter_config.json with"),
        "acme/many": (NotFoundError, "more than one adapter, in 'in/', 'in/one/', 'in/two/'"),
        "acme/zstd": (NotFoundError, "compressed with zstd; expected gzip"),
        "acme/unnamed": (UnavailableError, "no digest of the form sha256:HEX"),
        "acme/nested": (UnavailableError, "nested image indexes are not supported"),
        "acme/odd": (UnavailableError, "the manifest is not a JSON object"),
        "acme/older": (UnavailableError, "the manifest has no list of layers"),
    }
    for name, (kind, what) in errors.items():
        with pytest.raises(kind, match=what):
            opened(registry, name)
    files = opened(registry, "acme/gone")
    with pytest.raises(NotFoundError):
        list(files.read("a.safetensors"))
    docker.write_text("{")
    registry.put_folder("closed/bot", "latest", folder.parent / "docker")
    with pytest.raises(
        UnavailableError, match=r"credentials: .*config\.json is not a valid Docker configuration"
    ):
        opened(registry, "closed/bot")
    with pytest.raises(UnavailableError, match="ConnectionError"):
        OciFiles(parse_uri("oci://127.0.0.1:9/a"))


def test_other_bytes_than_were_named_are_refused(registry: Registry) -> None:
    layer = registry.layer(b"right", **{TITLE: "a.safetensors"})
    digest = registry.put("acme/forged", "latest", [layer])
    registry.blobs[layer["digest"]] = b"wrong"
    with pytest.raises(UnavailableError, match="a blob does not match its digest"):
        list(opened(registry, "acme/forged").read("a.safetensors"))
    registry.manifests["acme/forged", digest] += b" "
    with pytest.raises(UnavailableError, match="the manifest does not match its digest"):
        opened(registry, f"acme/forged@{digest}")


def test_names_from_elsewhere_may_stand_in_messages(registry: Registry) -> None:
    layers = [registry.layer(b"", **{TITLE: f"{x}{'x' * 999}.safetensors"}) for x in "\ud800\n"]
    registry.put("acme/odd-names", "latest", layers)
    with pytest.raises(NotFoundError, match="more than one package") as caught:
        opened(registry, "acme/odd-names")
    said = str(caught.value).encode()
    assert len(said) < 500 and b"\n" not in said


def test_of_a_path_that_an_archive_has_twice_the_last_counts(
    registry: Registry, folder: Path
) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as packed:
        for name in ("README.md", "adapter_config.json"):
            packed.add(folder / name, "in/adapter_config.json")
        packed.add(folder / "adapter_model.safetensors", "in/adapter_model.safetensors")
    registry.put("acme/twice", "latest", [registry.layer(file.getvalue())])
    assert has(opened(registry, "acme/twice"), folder)


def test_what_a_registry_sends_us_to_is_shown_nothing(
    docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []
    places = {"other": "", "challenge": ""}

    def other(path: str, headers: Message) -> tuple[int, dict[str, str], bytes]:
        asked.append((path, headers.get("Authorization")))
        return 401, {"WWW-Authenticate": f'Bearer realm="{places["other"]}/token"'}, b""

    def first(path: str, headers: Message) -> tuple[int, dict[str, str], bytes]:
        if headers.get("Authorization"):
            if path.endswith("/round"):
                return 302, {"Location": path}, b""
            bomb = {"Content-Encoding": "gzip"}  # which nobody is to unpack
            return 302, {"Location": f"{places['other']}/it", **bomb}, b"no gzip"
        return 401, {"WWW-Authenticate": places["challenge"]}, b""

    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password p")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with answering(first) as address, answering(other) as places["other"]:
        host = address.removeprefix("http://")
        docker.write_text(json.dumps({"auths": {host: {"username": "u", "password": "p"}}}))
        places["challenge"] = "Basic"
        with pytest.raises(FailedPreconditionError):
            OciFiles(OciUri(host, "a", "b"))
        assert asked == [("/it", None)]
        with pytest.raises(UnavailableError, match="redirects more than"):
            OciFiles(OciUri(host, "a", "round"))
        for odd in ('Bearer realm="https://["', "Bearer realm", 'Bearer realm="ftp://x/"'):
            places["challenge"] = odd
            with pytest.raises((UnavailableError, FailedPreconditionError)):
                OciFiles(OciUri(host, "a", "b"))
    with pytest.raises(InvalidSchema):  # wherever a registry elsewhere would send us
        Asked("r.io", "a")._session.get("http://127.0.0.1:9/")


def test_a_caller_who_gives_up_ends_also_what_comes_slowly(
    registry: Registry, folder: Path
) -> None:
    registry.put("acme/image", "slow", [registry.layer(archive(folder, "in"), f"{LAYER}+gzip")])
    with pytest.raises(CancelledError):
        OciFiles(parse_uri(f"oci://{registry.host}/acme/image:slow"), lambda: True)
    has_begun = threading.Event()

    class Drips(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            with suppress(OSError):
                while True:
                    self.wfile.write(b"{")
                    has_begun.set()
                    time.sleep(0.05)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Drips) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        with pytest.raises(CancelledError):
            OciFiles(OciUri(f"127.0.0.1:{server.server_address[1]}", "a", "b"), has_begun.is_set)
        server.shutdown()


def listed(data: bytes, size: int = 1000) -> dict[str, bytes]:
    chunks = (data[at : at + size] for at in range(0, len(data), size))
    return {member.path: b"".join(member.chunks) for member in members(chunks)}


def header(**said: Any) -> bytes:
    info = tarfile.TarInfo("x")
    for name, value in said.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def test_archives_are_what_tarfile_reads(folder: Path) -> None:
    (folder / "link").symlink_to("README.md")
    (folder / "empty").touch()
    for mode, form in (("w", tarfile.GNU_FORMAT), ("w:gz", tarfile.PAX_FORMAT)):
        data = archive(folder, "ä" * 99, mode, form)
        with tarfile.open(fileobj=io.BytesIO(data)) as known:
            expected = {
                info.name: found.read()
                for info in known
                if info.isreg() and (found := known.extractfile(info))
            }
        assert len(expected) == 4
        assert listed(data) == listed(data, 7) == listed(data, len(data)) == expected
    plain = gzip.decompress(data)
    halves = gzip.compress(plain[:5000]) + gzip.compress(plain[5000:]) + bytes(512)
    assert listed(halves) == expected


def test_archives_are_read_within_bounds(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    data = archive(folder, "in", "w")
    bad = {
        "the archive is truncated": data[:3000],
        "a header of the archive": b"no archive" * 100,
        "the gzip stream of the archive": gzip.compress(data)[:-20],
        "not valid gzip": gzip.compress(data)[:10] + b"\xff" * 500,
        "a header of the archive has 1073741824 bytes": header(type=tarfile.XHDTYPE, size=1 << 30),
        "a header of the archive has 1048576 bytes": header(
            type=tarfile.GNUTYPE_LONGNAME, size=1 << 20
        ),
    }
    for what, some in bad.items():
        with pytest.raises(ArchiveError, match=what):
            listed(some)
    monkeypatch.setattr(archives, "_MAX_FILES", 3)
    with pytest.raises(ArchiveError, match="more than 3 entries"):
        listed(data)
    monkeypatch.setattr(archives, "_MAX_BYTES", 1 << 20)
    with pytest.raises(ArchiveError, match="more than 1048576 bytes"):
        listed(gzip.compress(header(size=1 << 30) + bytes(1 << 22)))
