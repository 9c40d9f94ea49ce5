"""Which keys open a server, and which do not."""

import datetime
import hmac
import os
import random
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from loramux.errors import PermissionDeniedError, UnauthenticatedError
from loramux_server.access.authenticator import Authenticator
from loramux_server.access.caller import LOCAL_ADMIN, Caller, Role
from loramux_server.access.certificates import Certificates
from loramux_server.access.key import Key, key_digest, new_key, parse_key
from loramux_server.access.key_manager import KeyManager
from loramux_server.access.key_ring import KeyRing
from loramux_server.access.server_secret import (
    SECRET_FILE,
    ServerSecretError,
    make_secret,
    read_secret,
)
from loramux_server.access.tenants import Tenants
from loramux_server.store.catalog import Catalog
from loramux_server.store.times import now_in_utc

HOUR = datetime.timedelta(hours=1)
NEAR_MISSES = 10_000
LOOK_ALIKES = {"l": "1", "1": "l", "0": "O", "O": "0", "o": "\u043e", "a": "\u0430", "x": "\u0445"}


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog.in_folder(tmp_path)
    yield catalog
    catalog.close()


class Wall:
    """A wall clock that can be moved."""

    def __init__(self) -> None:
        self.ahead = datetime.timedelta()

    def __call__(self) -> datetime.datetime:
        return now_in_utc() + self.ahead


class Setup:
    """The keys of a store, from both sides."""

    def __init__(self, catalog: Catalog, folder: Path) -> None:
        self.manager = KeyManager(catalog.keys, folder)
        self.wall = Wall()
        self.ring = KeyRing(catalog.keys, folder, now=self.wall)
        self.tenants = Tenants(catalog.disabled_tenants)
        self.authenticator = Authenticator(self.ring, self.tenants)

    def make(self, tenant: str = "acme", role: Role = Role.USER) -> str:
        text = self.manager.make(tenant=tenant, role=role).text
        self.ring.refresh()
        return text

    def caller(self, *shown: str | bytes, name: str = "authorization") -> Caller | None:
        """Return who shows these values of metadata, or None if that opens nothing."""
        try:
            return self.authenticator.identify([(name, value) for value in shown], dict)
        except UnauthenticatedError:
            return None


@pytest.fixture
def setup(catalog: Catalog, tmp_path: Path) -> Setup:
    return Setup(catalog, tmp_path)


def test_a_key_says_whose_it_is_and_what_for(setup: Setup) -> None:
    text = setup.make("acme", Role.PUBLISHER)
    assert setup.caller(f"Bearer {text}") == Caller("acme", Role.PUBLISHER, text.split("_")[1])


def test_without_any_key_anybody_is_the_administrator(setup: Setup) -> None:
    assert setup.caller() == LOCAL_ADMIN
    key = setup.make()
    assert setup.caller() is None
    setup.manager.revoke(key.split("_")[1])
    setup.ring.refresh()
    assert setup.caller() is None  # what was closed does not open again


@pytest.mark.parametrize(
    "shown",
    [
        [], ["{key}"], ["Bearer"], ["Bearer "], ["Bearer  {key}"], ["Bearer {key} "], [" {key}"],
        ["Bearer {key}\n"], ["Basic {key}"], ["Bearer\t{key}"], ["Bearer {key}", "Bearer {key}"],
        ["Bearer {key},Bearer {key}"], ["Bearer " + "x" * 65536], ["Bearer lmx__"],
    ],
)  # fmt: skip
def test_what_is_built_otherwise_opens_nothing(setup: Setup, shown: list[str]) -> None:
    key = setup.make()
    assert setup.caller(*(value.format(key=key) for value in shown)) is None


def test_a_key_counts_in_its_own_place_alone(setup: Setup) -> None:
    shown = f"Bearer {setup.make()}"
    assert setup.caller(shown, name="x-api-key") is None
    assert setup.caller(shown.encode(), name="authorization-bin") is None
    assert setup.caller(shown.encode()) is None
    assert setup.caller(shown.replace("Bearer", "bearer")) is not None


def near_miss(key: str, other: str, draw: random.Random) -> str:
    """Return a text that is nearly `key`."""
    at = draw.randrange(len(key))
    letter = draw.choice(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-=+/ \u00a0"
    )
    kinds = [
        lambda: key[:at] + letter + key[at + 1 :],
        lambda: key[:at] + letter + key[at:],
        lambda: key[:at] + key[at + 1 :],
        lambda: key[:at],
        lambda: key[at:],
        lambda: key[:at] + key[at:].swapcase(),
        lambda: key.upper() if at % 2 else key.lower(),
        lambda: key[:at] + LOOK_ALIKES.get(key[at], letter) + key[at + 1 :],
        lambda: key[:at] + key[at:][::-1],
        lambda: key + letter,
        lambda: key[:16] + other[16:],
        lambda: other[:16] + key[16:],
        lambda: key[:17] + "".join(draw.sample(key[17:], len(key) - 17)),
    ]
    return draw.choice(kinds)()


def test_key_and_certificate_have_to_be_of_one_tenant(setup: Setup) -> None:
    shown = [("authorization", f"Bearer {setup.make('acme', Role.PUBLISHER)}")]
    authenticator = Authenticator(setup.ring, setup.tenants, Certificates("a.org"))

    def identify(tenant: str, metadata: list[tuple[str, str]]) -> Caller:
        peer = {"peer_uri": [f"spiffe://a.org/tenant/{tenant}/role/viewer".encode()]}
        return authenticator.identify(metadata, lambda: peer)

    assert identify("acme", []) == Caller("acme", Role.VIEWER)
    assert identify("acme", shown).role is Role.PUBLISHER
    with pytest.raises(PermissionDeniedError, match="different tenants") as caught:
        identify("other", shown)
    assert caught.value.reason == "PERMISSION_DENIED"
    with pytest.raises(UnauthenticatedError):
        identify("acme", [("authorization", "Bearer lmx_")])


def test_what_is_nearly_a_key_opens_nothing(setup: Setup) -> None:
    keys = [setup.make(f"tenant{number}") for number in range(4)]
    draw = random.Random(0)
    tried, well_formed = 0, 0
    while tried < NEAR_MISSES:
        key, other = draw.sample(keys, 2)
        text = near_miss(key, other, draw)
        if text in keys:
            continue
        tried += 1
        well_formed += parse_key(text) is not None
        assert setup.caller(f"Bearer {text}") is None, text
    # Many get as far as the comparison of digests.
    assert well_formed > NEAR_MISSES // 5
    assert all(setup.caller(f"Bearer {key}") for key in keys)


def test_the_digest_of_one_key_is_no_key(setup: Setup, catalog: Catalog) -> None:
    setup.make()
    (record,) = catalog.keys.all()
    assert setup.caller(f"Bearer lmx_{record.id}_{record.digest[:43]}") is None


def test_a_revoked_key_opens_nothing(setup: Setup) -> None:
    kept, gone = setup.make(), setup.make()
    setup.manager.revoke(gone.split("_")[1])
    setup.ring.refresh()
    assert setup.caller(f"Bearer {gone}") is None
    assert setup.caller(f"Bearer {kept}") is not None


def test_a_key_expires(setup: Setup) -> None:
    text = setup.manager.make(tenant="acme", role=Role.USER, lifetime=HOUR).text
    setup.ring.refresh()
    assert setup.caller(f"Bearer {text}") is not None
    setup.wall.ahead = 2 * HOUR
    assert setup.caller(f"Bearer {text}") is None
    assert not setup.ring.has_valid_key()


def test_a_key_is_good_until_its_end_and_not_at_it(setup: Setup, catalog: Catalog) -> None:
    setup.manager.make(tenant="acme", role=Role.USER, lifetime=HOUR)
    (record,) = catalog.keys.all()
    assert record.expires_at is not None
    assert record.is_valid(record.expires_at - datetime.timedelta(microseconds=1))
    assert not record.is_valid(record.expires_at)


def test_both_keys_of_a_rotation_are_good_for_a_while(setup: Setup, catalog: Catalog) -> None:
    old = setup.make("acme", Role.PUBLISHER)
    new = setup.manager.rotate(old.split("_")[1], grace=HOUR).text
    setup.ring.refresh()
    callers = [setup.caller(f"Bearer {text}") for text in (old, new)]
    assert {(who.tenant, who.role) for who in callers if who} == {("acme", Role.PUBLISHER)}
    setup.wall.ahead = 2 * HOUR
    assert setup.caller(f"Bearer {old}") is None
    assert setup.caller(f"Bearer {new}") is not None
    assert [record.tenant for record in catalog.keys.all()] == ["acme", "acme"]


def test_a_rotation_never_makes_the_old_key_live_longer(setup: Setup, catalog: Catalog) -> None:
    key = setup.manager.make(tenant="acme", role=Role.USER, lifetime=HOUR)
    setup.manager.rotate(key.id, grace=100 * HOUR)
    records = {record.id: record for record in catalog.keys.all()}
    expires_at = records[key.id].expires_at
    assert expires_at is not None
    assert expires_at - records[key.id].created_at == HOUR


@pytest.mark.parametrize("act", ["revoke", "rotate"])
def test_what_opens_nothing_is_not_rotated_and_not_revoked_again(setup: Setup, act: str) -> None:
    key_id = setup.make().split("_")[1]
    setup.manager.revoke(key_id)
    for name in (key_id, "nobody"):
        with pytest.raises(LookupError, match=name):
            setup.manager.revoke(name) if act == "revoke" else setup.manager.rotate(
                name, grace=HOUR
            )


def test_the_catalog_holds_no_key(setup: Setup, tmp_path: Path) -> None:
    text = setup.make()
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert text.encode() not in held
    assert text.rpartition("_")[2].encode() not in held
    assert text.split("_")[1].encode() in held


def test_keys_stay_as_they_are_built() -> None:
    key = new_key()
    assert re.fullmatch(r"lmx_[a-z0-9]{12}_[A-Za-z0-9]{43}", key.text)
    assert parse_key(f"lmx_{'a1' * 6}_{'Z' * 43}") == Key("a1" * 6, f"lmx_{'a1' * 6}_{'Z' * 43}")


def test_a_key_does_not_show_itself(setup: Setup) -> None:
    key = new_key()
    assert key.text.rpartition("_")[2] not in f"{key} {key!r}"


def test_digests_depend_on_the_secret_of_the_server() -> None:
    key = new_key()
    assert key_digest(key, b"a" * 32) != key_digest(key, b"b" * 32)


def test_the_secret_is_made_once_and_for_the_owner_alone(tmp_path: Path) -> None:
    secret = make_secret(tmp_path)
    assert len(secret) == 32
    assert make_secret(tmp_path) == read_secret(tmp_path) == secret
    assert [path.name for path in tmp_path.iterdir()] == [SECRET_FILE]
    assert (tmp_path / SECRET_FILE).stat().st_mode & 0o777 == 0o600


def test_a_secret_that_was_made_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(_kind(number)))
    make_secret(tmp_path)
    assert synced == ["file", "folder"]  # its bytes, then its name


def _kind(descriptor: int) -> str:
    return "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"


@pytest.mark.parametrize("damage", ["open", "short", "link", "gone"])
def test_a_secret_that_cannot_be_trusted_opens_nothing(
    catalog: Catalog, tmp_path: Path, damage: str
) -> None:
    Setup(catalog, tmp_path).make()
    path = tmp_path / SECRET_FILE
    if damage == "open":
        path.chmod(0o640)
    elif damage == "short":
        path.write_bytes(b"x")
    elif damage == "link":
        path.symlink_to(path.rename(tmp_path / "elsewhere"))
    else:
        path.unlink()
    with pytest.raises(ServerSecretError, match=SECRET_FILE):
        KeyRing(catalog.keys, tmp_path)


def test_a_lost_secret_is_made_anew_only_when_no_key_needs_it(
    setup: Setup, catalog: Catalog, tmp_path: Path
) -> None:
    old = setup.make().split("_")[1]
    (tmp_path / SECRET_FILE).unlink()
    for attempt in (setup.make, lambda: setup.manager.rotate(old, grace=HOUR)):
        with pytest.raises(ServerSecretError, match="revoke all keys"):
            attempt()
    setup.manager.revoke(old)
    assert KeyRing(catalog.keys, tmp_path).find("lmx_") is None
    new = setup.make()
    assert setup.caller(f"Bearer {new}") is not None


def shown_in_all_ways(setup: Setup) -> dict[str, str]:
    """Return keys of the right form, only the first of which is good."""
    good, revoked, expired = setup.make(), setup.make(), setup.make()
    setup.manager.revoke(revoked.split("_")[1])
    setup.manager.rotate(expired.split("_")[1], grace=-HOUR)
    setup.ring.refresh()
    return {
        "good": good,
        "unknown": new_key().text,
        "first letter wrong": good[:-43] + other_letter(good[-43]) + good[-42:],
        "last letter wrong": good[:-1] + other_letter(good[-1]),
        "all wrong": good[:-43] + new_key().text[-43:],
        "revoked": revoked,
        "expired": expired,
    }


def other_letter(letter: str) -> str:
    return "b" if letter == "a" else "a"


def test_the_same_work_is_done_for_every_key_of_the_right_form(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = shown_in_all_ways(setup)
    work: list[tuple[str, int, int]] = []

    def digest(secret: bytes, text: bytes, name: str) -> bytes:
        work.append(("digest", len(secret), len(text)))
        return hmac.digest(secret, text, name)

    def compare(left: bytes, right: bytes) -> bool:
        work.append(("compare", len(left), len(right)))
        return hmac.compare_digest(left, right)

    counted = SimpleNamespace(digest=digest, compare_digest=compare)
    for module in ("key", "key_ring"):
        monkeypatch.setattr(f"loramux_server.access.{module}.hmac", counted)
    for way, text in shown.items():
        work.clear()
        assert (setup.caller(f"Bearer {text}") is not None) is (way == "good"), way
        assert work == [("digest", 32, len(text)), *2 * [("compare", 32, 32)]], way


@pytest.mark.parametrize("says", [True, False])
def test_nothing_but_the_comparison_in_constant_time_decides(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, says: bool
) -> None:
    shown = shown_in_all_ways(setup)
    compared = SimpleNamespace(digest=hmac.digest, compare_digest=lambda left, right: says)
    monkeypatch.setattr("loramux_server.access.key_ring.hmac", compared)
    opened = {way for way, text in shown.items() if setup.caller(f"Bearer {text}")}
    wrong = {"first letter wrong", "last letter wrong", "all wrong"}
    assert opened == ({"good", *wrong} if says else set())


def test_a_disabled_tenant_may_not_call_and_others_may(setup: Setup, catalog: Catalog) -> None:
    callers = {name: setup.caller(f"Bearer {setup.make(name)}") for name in ("acme", "other")}
    catalog.disabled_tenants.add("acme", now_in_utc())
    setup.tenants.refresh()
    found = {}
    for name, who in callers.items():
        assert who is not None
        found[name] = setup.authenticator.refusal(who)
    assert found["other"] is None
    assert isinstance(found["acme"], PermissionDeniedError)
    assert found["acme"].reason == "TENANT_DISABLED"
    # A key that is valid no more tells nothing of its tenant.
    assert callers["acme"] is not None
    setup.manager.revoke(callers["acme"].key_id)
    setup.ring.refresh()
    assert isinstance(setup.authenticator.refusal(callers["acme"]), UnauthenticatedError)
    assert catalog.disabled_tenants.remove("acme")
    setup.tenants.refresh()
    assert not setup.tenants.is_disabled("acme")


def test_a_certificate_of_a_disabled_tenant_opens_nothing(setup: Setup, catalog: Catalog) -> None:
    setup.make()
    authenticator = Authenticator(setup.ring, setup.tenants, Certificates("a.org"))
    peer = {"peer_uri": [b"spiffe://a.org/tenant/acme/role/admin"]}
    who = authenticator.identify([], lambda: peer)
    assert authenticator.refusal(who) is None
    catalog.disabled_tenants.add("acme", now_in_utc())
    setup.tenants.refresh()
    assert isinstance(authenticator.refusal(who), PermissionDeniedError)


def test_keys_stay_while_the_catalog_cannot_be_read(setup: Setup, tmp_path: Path) -> None:
    key = setup.make()
    setup.manager.make(tenant="acme", role=Role.USER)
    (tmp_path / SECRET_FILE).rename(tmp_path / "away")
    with pytest.raises(ServerSecretError):
        setup.ring.refresh()
    assert setup.caller(f"Bearer {key}") is not None
