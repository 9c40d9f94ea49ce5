"""What may be imported, and what is read of it."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from loramux.errors import (
    AbortedError,
    FailedPreconditionError,
    InvalidArgumentError,
    LoramuxError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from loramux_server.sources.hub import HubFiles, HubUri, parse_uri
from loramux_server.sources.objects import Objects
from loramux_server.sources.policy import Sources
from tests.support.hub import Hub, running_hub

ALLOWED = Sources(["acme/*", "other/one"], ["s3://bucket", "gs://shared/adapters/"])


@pytest.mark.parametrize(
    "uri",
    [
        "hf://acme/bot", "hf://acme/bot@v1.0", "hf://acme/bot@refs%2Fpr%2F3/deep/er",
        "hf://other/one/adapter.safetensors", "s3://bucket/a", "s3://bucket/a/b.safetensors",
        "gs://shared/adapters/bot/", "s3://bucket/a/...",
    ],
)  # fmt: skip
def test_what_is_allowed_is_opened_later(uri: str) -> None:
    assert callable(ALLOWED.find(uri))  # and nothing was asked of its source


@pytest.mark.parametrize(
    "uri",
    [
        "hf://acme2/bot", "hf://other/one2", "hf://other/two", "s3://bucket2/a", "s3://other/bucket/a",
        "gs://shared/adapters2/bot", "gs://shared/other", "az://bucket/a", "gs://bucket/a",
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_refused_and_what_would_allow_it_named(uri: str) -> None:
    with pytest.raises(PermissionDeniedError, match="is not allowed here") as caught:
        ALLOWED.find(uri)
    assert (caught.value.reason, caught.value.field) == ("SOURCE_NOT_ALLOWED", "uri")
    option, value = shlex.split(str(caught.value).partition(" server with ")[2])[:2]
    settings = {"--hub-allow": "hub_allow", "--object-allow": "object_allow"}
    assert callable(Sources(**{settings[option]: (value,)}).find(uri))


@pytest.mark.parametrize("uri", ["hf://acme/bot", "s3://bucket/a", "gs://b/a", "az://b/a"])
def test_by_default_nothing_is_allowed(uri: str) -> None:
    with pytest.raises(PermissionDeniedError):
        Sources().find(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "", "bot", "acme/bot", "/etc/passwd", "file:///etc/passwd", "http://bucket/a",
        "s3:bucket/a", "s3://", "s3://bucket", "s3://bucket/", "s3://bucket/a/../../other", "s3://bucket/./a",
        "s3://bucket//a", "s3://bucket/%2e%2e/a", "s3://bucket/a?x=1", "s3://bucket/a#b",
        "s3://user@bucket/a", "s3://bucket:80/a", "s3://bucket/a\\b", "s3://bucket/a\nb",
        "hf://acme", "hf://acme/", "hf:///bot", "hf://acme/bot@", "hf://acme/bot@a@b",
        "hf://acme/../bot", "hf://acme/bot/../x", "hf://acme/bot//x", "hf://-acme/bot",
        "hf://acme/bot?x", "HF://acme/bot", "hf://acme/bot@main/.git", "hf://ac me/bot",
    ],
)  # fmt: skip
def test_what_is_no_uri_is_refused(uri: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^uri is ") as caught:
        ALLOWED.find(uri)
    assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", "uri")


@pytest.mark.parametrize(
    "prefix", ["", "bucket", "s3://", "s3://*", "http://bucket", "s3://a/../b"]
)
def test_a_beginning_that_no_object_has_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidArgumentError):
        Sources((), [prefix])


def test_a_uri_of_the_hub_has_repository_revision_and_path() -> None:
    assert parse_uri("hf://acme/bot") == HubUri("acme/bot", "main", "")
    assert parse_uri("hf://acme/bot@refs%2Fpr%2F3/a/b/") == HubUri("acme/bot", "refs/pr/3", "a/b")


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files as PEFT saves them, and others."""
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (tmp_path / name).write_text(f"what {name} has")
    return tmp_path


@pytest.fixture
def at_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, as a process with this environment finds it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield hub
    hub.files.clear()
    hub.gated.clear()
    hub.sizes.clear()


def test_a_folder_of_the_hub_is_read_from_one_commit(at_hub: Hub, folder: Path) -> None:
    at_hub.put("acme/bot", "main", folder)
    files = HubFiles(parse_uri("hf://acme/bot"))
    assert files.origin == f"hf://acme/bot@{Hub.commit('main')}"
    assert set(files.sizes) == {"adapter_config.json", "adapter_model.safetensors"}
    at_hub.asked.clear()
    for name, size in files.sizes.items():
        data = b"".join(files.read(name))
        assert (data, len(data)) == ((folder / name).read_bytes(), size)
    assert all(Hub.commit("main") in path for path in at_hub.asked)


def test_what_the_hub_does_not_have_is_named(at_hub: Hub, folder: Path) -> None:
    at_hub.put("acme/bot", "main", folder)
    (folder / "adapter_model.safetensors").unlink()
    at_hub.put("acme/half", "main", folder)
    at_hub.gated.add("acme/gated")
    errors: dict[str, type[LoramuxError]] = {
        "hf://acme/none": NotFoundError,
        "hf://acme/bot@v9": NotFoundError,
        "hf://acme/bot/deep": NotFoundError,
        "hf://acme/bot/a.safetensors": NotFoundError,
        "hf://acme/half": NotFoundError,
        "hf://acme/gated": FailedPreconditionError,
    }
    for uri, error in errors.items():
        with pytest.raises(error) as caught:
            HubFiles(parse_uri(uri))
        assert caught.value.reason in ("SOURCE_NOT_FOUND", "SOURCE_NOT_READABLE")


def test_a_hub_that_does_not_answer_is_unavailable(
    at_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError) as caught:
        HubFiles(parse_uri("hf://acme/bot"))
    assert caught.value.reason == "SOURCE_UNAVAILABLE"


def test_an_object_that_changes_while_it_is_read_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loramux_server.sources.objects.CHUNK_BYTES", 4)
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"0123456789")
    pieces = Objects(f"file://{target}").read("a.safetensors")
    assert next(pieces) == b"0123"
    assert next(pieces) == b"4567"
    target.write_bytes(b"something else")
    with pytest.raises(AbortedError, match="changed while it was being read"):
        next(pieces)
