"""Keys and tenants that a file lists."""

import datetime
from pathlib import Path

import pytest

from loramux_server.access.access_control import AccessControl
from loramux_server.access.access_file import AccessFile, append_key, read_access
from loramux_server.access.caller import Caller, Role
from loramux_server.access.key import Key, new_key
from loramux_server.access.key_manager import new_record
from loramux_server.access.key_ring import KeyRing
from loramux_server.config import ConfigError, make_config
from loramux_server.store.policy import Policy
from tests.support.access import Keys

HASH = "0" * 64
KEY = f'id = "abcdefghijkl"\nsha256 = "{HASH}"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.toml"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "store")


def listed(path: Path, tenant: str, role: Role, label: str = "") -> Key:
    key = new_key()
    hour = datetime.timedelta(hours=1)
    append_key(
        path,
        new_record(key.id, key.sha256, tenant=tenant, role=role, label=label, lifetime=hour),
    )
    return key


def settle(file: AccessFile) -> None:
    """Look twice, as at what is not written any more."""
    file.refresh()
    file.refresh()


def test_what_is_appended_is_read_and_all_else_stays(path: Path) -> None:
    path.write_text("# Ours.\n[tenants.acme]\ntokens_per_minute = 9\nrequests_per_second = 0.5")
    labels = ("", 'a "b" \\ é')
    made = [listed(path, "acme", Role.PUBLISHER, label) for label in labels]
    access = read_access(path)
    assert path.read_text().startswith("# Ours.\n[tenants.acme]\n")
    assert [record.id for record in access.keys.values()] == [key.id for key in made]
    assert [record.label for record in access.keys.values()] == list(labels)
    assert all(record.expires_at for record in access.keys.values())
    policy = Policy(tenant="acme", tokens_per_minute=9, requests_per_second=0.5)
    assert access.policies == {"acme": policy}
    assert access.disabled == frozenset()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("content", "said"), [
    ("keys = 1", r"Expected `array`, got `int` - at `\$\.keys`"),
    ("[[keys]]\nid = 'abc'\nsha256 = ''", r"\$\.keys\[0\]\.id"),
    (f"[[keys]]\n{KEY}role = 'boss'", "boss"),
    (f"[[keys]]\n{KEY}key = 'lmx_'", "unknown field `key`"),
    (f"[[keys]]\n{KEY}expires = 2030-01-01T00:00:00", "timezone"),
    (f"[[keys]]\n{KEY}tenant = 'A B'", "tenant of key abcdefghijkl .*A B"),
    (f"[[keys]]\n{KEY}[[keys]]\n{KEY}", "abcdefghijkl is listed twice"),
    ("[tenants.acme]\nweight = 0", r"weight"),
    ("[tenants.acme]\ntokens_per_minute = '9'", "Expected `int.*tokens_per_minute"),
    ("[tenants.'A B']", "tenant name .*A B"),
    ("[tenants.public]\ndisabled = true", "public is shared"),
    ("[tenants", "end of a table"),
])  # fmt: skip
def test_what_is_wrong_is_reported_with_its_place(path: Path, content: str, said: str) -> None:
    path.write_text(content)
    with pytest.raises(ValueError, match=f"--access {path}: .*{said}"):
        AccessFile(path)


def test_a_key_in_both_counts_as_the_file_says(path: Path, keys: Keys) -> None:
    both, stored = keys.make("acme", Role.ADMIN), keys.make("acme", Role.USER)
    append_key(path, new_record(both.id, both.sha256, tenant="other", role=Role.VIEWER))
    file = AccessFile(path)
    ring = KeyRing(keys.catalog.keys, path.parent / "store", file)
    assert ring.find(both.text) == Caller("other", Role.VIEWER, both.id)
    assert ring.find(stored.text) == Caller("acme", Role.USER, stored.id)
    assert ring.find(keys.with_another_secret(both).text) is None
    path.write_text("")
    settle(file)
    assert ring.find(both.text) == Caller("acme", Role.ADMIN, both.id)
    keys.close()


def test_a_key_that_was_revoked_in_the_store_opens_nothing_though_the_file_lists_it(
    path: Path, keys: Keys
) -> None:
    both = keys.make("acme", Role.USER)
    append_key(path, new_record(both.id, both.sha256, tenant="acme", role=Role.USER))
    ring = KeyRing(keys.catalog.keys, path.parent / "store", AccessFile(path))
    who = ring.find(both.text)
    assert who and ring.is_valid(who)
    keys.manager.revoke(both.id)
    ring.refresh()
    assert not ring.is_valid(who)
    assert ring.find(both.text) is None
    keys.close()


def test_who_has_another_role_or_tenant_now_is_not_who_called(path: Path, keys: Keys) -> None:
    key = listed(path, "acme", Role.ADMIN)
    file = AccessFile(path)
    ring = KeyRing(keys.catalog.keys, path.parent / "store", file)
    content = path.read_text()
    for old, new in (("admin", "viewer"), ("acme", "other")):
        who = ring.find(key.text)
        assert who and ring.is_valid(who)
        path.write_text(content := content.replace(old, new))
        settle(file)
        assert not ring.is_valid(who)
    assert ring.find(key.text) == Caller("other", Role.VIEWER, key.id)
    keys.close()


def test_what_is_being_written_is_not_taken_yet(path: Path) -> None:
    listed(path, "acme", Role.USER)
    content = path.read_text() + "[tenants.other]\ndisabled = true\n"
    path.write_text(content)
    file = AccessFile(path)
    for half in ("", content.partition("[tenants")[0]):
        path.write_text(half)
        file.refresh()
        assert file.listed.keys
        assert file.listed.disabled == {"other"}
    settle(file)
    assert not file.listed.disabled


def test_a_key_is_added_behind_a_link_and_whoever_could_read_the_file_still_can(
    path: Path,
) -> None:
    path.touch(mode=0o640)
    path.chmod(0o640)
    link = path.with_name("link.toml")
    link.symlink_to(path)
    key = listed(link, "acme", Role.USER)
    assert link.is_symlink()
    assert list(read_access(path).keys) == [key.id]
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_to_which_no_key_can_be_added_stays_as_it_is(path: Path) -> None:
    content = f"keys = [{{id = 'abcdefghijkl', sha256 = '{HASH}'}}]\n"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"--access {path}: "):
        listed(path, "acme", Role.USER)
    assert path.read_text() == content


def test_a_file_without_keys_opens_the_server_to_nobody(path: Path, keys: Keys) -> None:
    key = listed(path, "acme", Role.ADMIN)
    file = AccessFile(path)
    ring = KeyRing(keys.catalog.keys, path.parent / "store", file)
    assert ring.has_valid_key()
    for content in ("", None):  # emptied, and gone
        path.unlink() if content is None else path.write_text(content)
        if content is None:
            with pytest.raises(FileNotFoundError):
                settle(file)
        else:
            settle(file)
        assert not ring.is_empty
        assert ring.find(key.text) is None
    keys.close()


def test_a_server_does_not_start_with_a_file_that_is_wrong(path: Path, keys: Keys) -> None:
    config = make_config({"model": "", "access": str(path)})
    with pytest.raises(ConfigError, match=f"--access {path}: No such file"):
        AccessControl(keys.catalog, path.parent / "store", config)
    path.write_text("kyes = []")
    with pytest.raises(ConfigError, match="unknown field `kyes`"):
        AccessControl(keys.catalog, path.parent / "store", config)
    path.write_text("")
    outside = make_config({"model": "", "access": str(path), "listen": "0.0.0.0:1"})
    with pytest.raises(ConfigError, match=r"or set --access"):
        AccessControl(keys.catalog, path.parent / "store", outside)
    keys.close()
