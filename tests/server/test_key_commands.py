"""`loramux keys` and `loramux tenants`: what they print, refuse and keep."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from loramux.cli.app import run
from loramux.cli.options import parse_duration
from loramux_server.access.key import key_digest, parse_key
from loramux_server.access.server_secret import read_secret
from loramux_server.store.catalog import Catalog
from tests.support.command_line import Loramux, Result


@pytest.fixture
def loramux(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Loramux]:
    """Runs the command line in this process, on a store of its own."""
    monkeypatch.setenv("LORAMUX_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["loramux", *arguments])
        try:
            code = run()
        except SystemExit as end:
            code = int(end.code or 0)
        output, errors = capsys.readouterr()
        return Result(code, output, errors)

    return call  # type: ignore[return-value]


def test_a_key_is_printed_once_and_alone(loramux: Loramux, tmp_path: Path) -> None:
    label = "[/]ci :key:"  # neither markup nor an emoji
    made = loramux("keys", "create", "--tenant", "acme", "--label", label, "--expires", "30d")
    key = parse_key(made.output.removesuffix("\n"))
    assert key is not None
    assert "not shown again" in made.errors and "visible to every tenant" not in made.errors
    assert "tenant public are visible to every tenant" in loramux("keys", "create").errors
    assert key.text not in made.errors
    shown = loramux("keys", "ls").output
    assert key.id in shown
    assert key.text not in shown
    for word in ("acme", "user", "valid until", label):
        assert word in shown
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700


def test_rotation_and_revocation_show_in_the_list(loramux: Loramux) -> None:
    old = parse_key(loramux("keys", "create", "--role", "publisher").output.strip())
    assert old is not None
    new = parse_key(loramux("keys", "rotate", old.id, "--grace", "0s").output.strip())
    assert new is not None
    assert loramux("keys", "revoke", new.id).code == 0
    listed = json.loads(loramux("keys", "ls", "--json").output)
    assert [(key["id"], key["is_valid"]) for key in listed] == [(old.id, False), (new.id, False)]
    assert [key["role"] for key in listed] == ["publisher"] * 2
    assert "expired" in (text := loramux("keys", "ls").output)
    assert "revoked" in text


def test_a_key_of_another_server_is_taken_in(loramux: Loramux, tmp_path: Path) -> None:
    text = loramux("keys", "create", "--tenant", "acme", "--role", "publisher").output
    key = parse_key(text.strip())
    assert key is not None
    (tmp_path / "key").write_text(text)
    other = ["--store", str(tmp_path / "other"), "--tenant", "acme", "--role"]
    added = loramux("keys", "add", str(tmp_path / "key"), *other, "publisher")
    assert (added.code, added.output) == (0, "") and key.text not in added.errors
    again = loramux("keys", "add", str(tmp_path / "key"), *other, "publisher")
    assert again.code == 0 and "exists already" in again.errors
    for folder in ("store", "other"):
        with closing(Catalog.in_folder(tmp_path / folder)) as catalog:
            secret = read_secret(tmp_path / folder)
            assert [each.digest for each in catalog.keys.all()] == [key_digest(key, secret).hex()]
    refused = loramux("keys", "add", str(tmp_path / "key"), *other, "admin")
    assert refused.code == 1
    assert f"key '{key.id}' already exists, as publisher of tenant acme" in refused.errors
    (tmp_path / "forged").write_text(text.strip()[:-3] + "abc")
    refused = loramux("keys", "add", str(tmp_path / "forged"), *other, "publisher")
    assert refused.code == 1 and "with another secret" in refused.errors
    assert loramux("keys", "revoke", key.id, "--store", str(tmp_path / "other")).code == 0
    refused = loramux("keys", "add", str(tmp_path / "key"), *other, "publisher")
    assert refused.code == 1 and "was revoked, or has expired" in refused.errors
    (tmp_path / "none").write_text("lmx_")
    refused = loramux("keys", "add", str(tmp_path / "none"), *other, "publisher")
    assert refused.code == 2 and "does not contain a key of the form" in refused.errors


def test_a_key_is_taken_from_standard_input(
    loramux: Loramux, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = loramux("keys", "create").output
    other = ["--store", str(tmp_path / "other")]
    for data, code, says in (
        (text.encode(), 0, "user of tenant public"),
        (text.encode(), 0, "exists already and keeps its label and expiry"),
        (b"\xff\xfe", 2, "- does not contain a key of the form"),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        done = loramux("keys", "add", "-", *other, "--expires", "1d")
        assert done.code == code and says in " ".join(done.errors.split())
    gone = loramux("keys", "add", str(tmp_path / "gone"), *other)
    assert gone.code == 2 and "No such file" in gone.errors


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["keys", "create", "--tenant", "A B"], "tenant name 'A B' is not valid: use lower-case"),
        (["keys", "create", "--role", "root"], "root"),
        (["keys", "create", "--label", "a\nb"], "label"),
        (["keys", "create", "--expires", "soon"], "'soon' is not a duration"),
        (["keys", "revoke", "nobody"], "there is no key 'nobody'"),
        (["keys", "rotate", "nobody"], "there is no key 'nobody'"),
        (["tenants", "set", "Acme"], "tenant name 'Acme' is not valid"),
        (["tenants", "set", "acme", "--concurrent", "0"], "'0' is not valid; expected a number"),
        (["tenants", "set", "acme", "--concurrent", "1.5"], "'1.5' is not valid; expected an in"),
        (
            ["tenants", "set", "acme", "--tokens-per-minute", "nan"],
            "'nan' is not valid; expected a number above 0",
        ),
        (["tenants", "clear", "acme"], "tenant 'acme' has no limits"),
        (["tenants", "disable", "Acme"], "tenant name 'Acme' is not valid"),
        (["tenants", "disable", "public"], "'public' is shared by all tenants"),
        (["tenants", "enable", "acme"], "tenant 'acme' is not disabled"),
    ],
)
def test_what_is_wrong_is_said_and_changes_nothing(
    loramux: Loramux, tmp_path: Path, arguments: list[str], says: str
) -> None:
    done = loramux(*arguments)
    assert done.code in (1, 2)
    assert says in done.errors
    catalog = Catalog.in_folder(tmp_path / "store") if (tmp_path / "store").exists() else None
    if catalog is not None:
        assert (catalog.keys.all(), catalog.policies.all()) == ([], [])
        assert catalog.disabled_tenants.all() == {}
        catalog.close()


def test_limits_are_set_one_by_one(loramux: Loramux) -> None:
    loramux("keys", "create", "--tenant", "free")
    loramux("tenants", "set", "acme", "--requests-per-second", "0.5", "--concurrent", "4")
    loramux("tenants", "set", "acme", "--tokens-per-minute", "1000000", "--concurrent", "any")
    listed = json.loads(loramux("tenants", "ls", "--json").output)
    assert listed == [
        {
            "tenant": "acme", "requests_per_second": 0.5, "tokens_per_minute": 1000000,
            "concurrent_requests": None, "weight": 1, "disabled_at": None,
        },
        {
            "tenant": "free", "requests_per_second": None, "tokens_per_minute": None,
            "concurrent_requests": None, "weight": 1, "disabled_at": None,
        },
    ]  # fmt: skip
    assert "1,000,000" in loramux("tenants", "ls").output
    assert loramux("tenants", "clear", "acme").code == 0
    assert "acme" not in loramux("tenants", "ls").output


def test_a_tenant_is_disabled_and_enabled_again_with_all_that_it_has(
    loramux: Loramux, tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"
    loramux("keys", "create", "--tenant", "acme")
    loramux("tenants", "set", "acme", "--weight", "3")
    done = loramux("tenants", "disable", "acme", "--audit-log", str(log))
    assert (done.code, done.output) == (0, "")
    assert "it has 1 valid keys" in done.errors
    assert "already disabled" in loramux("tenants", "disable", "acme").errors
    loramux("tenants", "clear", "acme")  # limits are another matter
    loramux("tenants", "set", "acme", "--weight", "3")
    (listed,) = json.loads(loramux("tenants", "ls", "--json").output)
    assert (listed["weight"], listed["disabled_at"] is None) == (3, False)
    assert "disabled 20" in loramux("tenants", "ls").output
    assert loramux("tenants", "enable", "acme", "--audit-log", str(log)).code == 0
    (listed,) = json.loads(loramux("tenants", "ls", "--json").output)
    assert (listed["weight"], listed["disabled_at"]) == (3, None)
    (key,) = json.loads(loramux("keys", "ls", "--json").output)
    assert key["is_valid"]
    acts = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(act["act"], act["tenant"], act["outcome"]) for act in acts] == [
        ("tenant.disable", "acme", "ok"), ("tenant.enable", "acme", "ok")
    ]  # fmt: skip


def test_without_a_store_the_only_one_is_meant(
    loramux: Loramux, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LORAMUX_STORE")
    assert "give --store" in loramux("keys", "ls").errors
    for name in ("one", "two"):
        folder = tmp_path / "data" / "loramux" / name
        folder.mkdir(parents=True)
        Catalog.in_folder(folder).close()
        assert ("2 stores" in loramux("keys", "ls").errors) is (name == "two")


def test_a_catalog_elsewhere_is_meant_where_it_is_named(loramux: Loramux, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'elsewhere.sqlite'}"
    loramux("keys", "create", "--tenant", "acme", "--catalog", url)
    loramux("tenants", "set", "acme", "--weight", "2", "--catalog", url)
    assert json.loads(loramux("keys", "ls", "--json").output) == []
    for command in ("keys", "tenants"):
        (found,) = json.loads(loramux(command, "ls", "--json", "--catalog", url).output)
        assert found["tenant"] == "acme"
    assert "--catalog" in loramux("keys", "ls", "--catalog", "nonsense").errors


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0), ("90s", 90), ("5m", 300), ("24h", 86400), ("7d", 604800)]
)
def test_times(text: str, seconds: int) -> None:
    assert parse_duration(text).total_seconds() == seconds
