"""Keys of a server that runs: made, rotated and revoked by another process."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from loramux import Client
from loramux.errors import (
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from loramux.v1.adapters_pb2 import WatchAdaptersRequest
from loramux.v1.adapters_pb2_grpc import AdapterServiceStub
from loramux.v1.generation_pb2 import GenerateRequest
from loramux.v1.generation_pb2_grpc import GenerationServiceStub
from loramux.v1.server_pb2 import GetServerInfoRequest
from loramux.v1.server_pb2_grpc import ServerServiceStub
from loramux_server.access.caller import Role
from loramux_server.access.key import Key
from tests.support.access import Keys, shown
from tests.support.polling import eventually
from tests.support.server import RunningServer
from tests.support.wire import refusal

LONG: dict[str, Any] = {"max_tokens": 100_000, "ignore_eos": True, "logprobs": 20}
"""More than has room on its way to who does not read, so that it does not end by itself."""


class Store:
    """A server with keys, and the command that changes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "store"
        self.keys = Keys(self.folder)
        self.access = folder / "access.toml"
        self.access.touch()
        self.target = ""
        self.metrics: Callable[[], dict[str, float]] = dict

    def client(self, key: Key | str) -> Client:
        return Client(self.target, key=key if isinstance(key, str) else key.text, timeout=300)

    def loramux(self, *arguments: str) -> str:
        """Run a command in a process of its own and return what it printed."""
        command = [sys.executable, "-m", "loramux.cli", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True,
            env=os.environ | {"LORAMUX_STORE": str(self.folder)},
        )  # fmt: skip
        return done.stdout.strip()

    def is_known(self, key: Key | str) -> bool:
        with self.client(key) as client:
            try:
                client.info()
            except UnauthenticatedError:
                return False
            except PermissionDeniedError:  # its tenant is disabled
                return True
        return True


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, roomy_base: Path) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("server")
    store = Store(folder)
    store.keys.make("acme", Role.USER)
    with RunningServer(folder, roomy_base, "--access", str(store.access)) as server:
        store.target, store.metrics = server.target, server.metrics
        yield store
    store.keys.close()
    for record in store.keys.catalog.keys.all():
        assert record.digest not in server.log.read_text()
    assert "lmx_" not in server.log.read_text()


def test_a_key_is_made_shown_once_and_revoked_while_the_server_runs(store: Store) -> None:
    text = store.loramux(
        "keys", "create", "--tenant", "acme", "--role", "publisher", "--label", "ci"
    )
    assert eventually(lambda: store.is_known(text))
    listed = json.loads(store.loramux("keys", "ls", "--json"))
    (made,) = [record for record in listed if record["label"] == "ci"]
    assert (made["tenant"], made["role"], made["is_valid"]) == ("acme", "publisher", True)
    assert text not in json.dumps(listed)
    assert text.split("_")[1] == made["id"]
    store.loramux("keys", "revoke", made["id"])
    assert eventually(lambda: not store.is_known(text))


def test_keys_and_tenants_of_a_file_count_while_they_are_listed(store: Store) -> None:
    create = ("keys", "create", "--access", str(store.access), "--tenant", "listed")
    text = store.loramux(*create, "--label", 'the "first"', "--expires", "1h")
    assert eventually(lambda: store.is_known(text))
    with_one = store.access.read_text()
    assert text not in with_one
    assert store.loramux("keys", "ls").count("listed") == 0
    with store.client(text) as client:
        stream = client.stream("a", **LONG)
        next(stream)
        # A file that is wrong changes nothing.
        store.access.write_text(with_one + "[tenants.listed]\nweigth = 2\n")
        other = store.keys.make("acme", Role.USER)
        assert eventually(lambda: store.is_known(other))
        store.access.write_text(with_one + "[tenants.listed]\nrequests_per_second = 0.01\n")

        def is_limited() -> bool:
            try:
                client.generate("a", max_tokens=1)
            except ResourceExhaustedError as error:
                return error.reason == "QUOTA_EXCEEDED"
            return False

        assert eventually(is_limited)
        store.access.write_text(with_one + "[tenants.listed]\ndisabled = true\n")
        with pytest.raises(PermissionDeniedError, match="'listed' is disabled"):
            for _ in stream:
                pass
        store.access.write_text("")
        assert eventually(lambda: not store.is_known(text))
        assert store.is_known(other)


def test_streams_of_a_revoked_key_end_and_others_go_on(store: Store) -> None:
    gone, kept = (store.keys.make("acme", Role.USER) for _ in range(2))
    assert eventually(lambda: store.is_known(kept))
    with store.client(gone) as ending, store.client(kept) as going:
        streams = [client.stream("a", **LONG) for client in (ending, going)]
        for stream in streams:
            next(stream)
        with grpc.insecure_channel(store.target) as channel:
            watched = AdapterServiceStub(channel).WatchAdapters(
                WatchAdaptersRequest(), metadata=shown(gone.text)
            )
            store.keys.manager.revoke(gone.id)
            with pytest.raises(UnauthenticatedError) as caught:
                for _ in streams[0]:
                    pass
            assert caught.value.reason == "UNAUTHENTICATED"
            with pytest.raises(grpc.RpcError):
                next(watched)
            assert watched.code() is grpc.StatusCode.UNAUTHENTICATED
        next(streams[1])


def test_a_disabled_tenant_loses_its_calls_and_nothing_else(
    store: Store, tiny_adapters: Path
) -> None:
    barred, admin = store.keys.make("barred", Role.PUBLISHER), store.keys.make("acme", Role.ADMIN)
    assert eventually(lambda: store.is_known(admin))
    with store.client(barred) as calling, store.client(admin) as other:
        digest = calling.adapters.upload("poet", tiny_adapters / "small").digest
        streams = [client.stream("a", **LONG) for client in (calling, other)]
        for stream in streams:
            next(stream)
        store.loramux("tenants", "disable", "barred")
        with pytest.raises(PermissionDeniedError, match="'barred' is disabled") as caught:
            for _ in streams[0]:
                pass
        assert caught.value.reason == "TENANT_DISABLED"
        for call in (calling.info, lambda: calling.generate("a"), lambda: calling.adapters.list()):
            with pytest.raises(PermissionDeniedError) as caught:
                call()
            assert caught.value.reason == "TENANT_DISABLED"
        next(streams[1])  # of another tenant
        streams[1].close()  # type: ignore[attr-defined]
        assert other.adapters.get("barred/poet").digest == digest
        assert not store.is_known(store.keys.with_another_secret(barred))
        store.loramux("tenants", "enable", "barred")
        assert eventually(lambda: may_call(calling))
        assert calling.generate("a", adapter="poet", max_tokens=1).token_ids
        calling.adapters.delete("poet")


def may_call(client: Client) -> bool:
    try:
        client.info()
    except PermissionDeniedError:
        return False
    return True


def test_no_request_fails_while_a_key_is_rotated(store: Store) -> None:
    old = store.keys.make("acme", Role.USER)
    assert eventually(lambda: store.is_known(old))
    current, failures, num_sent = old.text, [], [0, 0]
    is_over = threading.Event()

    def send() -> None:
        while not is_over.is_set():
            key = current
            try:
                with store.client(key) as client:
                    client.generate("a", max_tokens=1)
            except Exception as error:
                failures.append(error)
            num_sent[key != old.text] += 1

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: num_sent[0] > 5)
    new = store.loramux("keys", "rotate", old.id, "--grace", "1h")
    # Who rotates deploys the key when the server knows it, which is after a fraction of a second.
    assert eventually(lambda: store.is_known(new))
    current = new
    assert eventually(lambda: num_sent[1] > 5)
    is_over.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.is_known(old)


def test_a_tenant_has_what_its_policy_says(store: Store) -> None:
    store.loramux("tenants", "set", "thrifty", "--concurrent", "1", "--weight", "3")
    # Keys that are made later: who knows them knows the policy.
    key, other = store.keys.make("thrifty", Role.USER), store.keys.make("acme", Role.USER)
    assert eventually(lambda: store.is_known(key))
    with store.client(key) as client, store.client(other) as free:
        stream = client.stream("a", **LONG)
        next(stream)
        with grpc.insecure_channel(store.target) as channel:
            generate = GenerationServiceStub(channel).Generate
            with pytest.raises(grpc.RpcError) as caught:
                generate(GenerateRequest(prompt="a"), metadata=shown(key.text))
        found = refusal(caught.value)
        assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (found.reason, found.retry_delay) == ("QUOTA_EXCEEDED", 1.0)
        (violation,) = found.standard["QuotaFailure"].violations
        assert violation.subject == "tenant:thrifty"
        assert "1 concurrent requests" in violation.description
        with pytest.raises(ResourceExhaustedError) as refused:
            client.generate("a")
        assert refused.value.quota == "tenant:thrifty"
        refusals = "loramux_tenant_requests_refused_total"
        assert store.metrics()[f'{refusals}{{cause="quota",tenant="thrifty"}}'] >= 2
        free.generate("a", max_tokens=1)
        store.loramux("tenants", "set", "thrifty", "--concurrent", "any")
        assert eventually(lambda: generates(client))
    (policy,) = json.loads(store.loramux("tenants", "ls", "--json"))[-1:]
    assert (policy["tenant"], policy["concurrent_requests"], policy["weight"]) == (
        "thrifty",
        None,
        3,
    )


def generates(client: Client) -> bool:
    try:
        client.generate("a", max_tokens=1)
    except ResourceExhaustedError:
        return False
    return True


def test_the_client_raises_what_a_key_may_not_do(store: Store) -> None:
    key = store.keys.make("acme", Role.VIEWER)
    assert eventually(lambda: store.is_known(key))
    with store.client(key) as client:
        with pytest.raises(PermissionDeniedError, match="'viewer'") as caught:
            client.generate("a")
        assert caught.value.reason == "PERMISSION_DENIED"
        with pytest.raises(PermissionDeniedError):
            next(client.stream("a"))


def test_a_call_with_a_key_in_another_place_is_not_known(store: Store) -> None:
    key = store.keys.make("acme", Role.ADMIN)
    assert eventually(lambda: store.is_known(key))
    with grpc.insecure_channel(store.target) as channel:
        info = ServerServiceStub(channel).GetServerInfo
        info(GetServerInfoRequest(), metadata=(("authorization", f"Bearer {key.text}"),))
        for metadata in (
            (("authorization-bin", f"Bearer {key.text}".encode()),),
            (("x-api-key", key.text),),
            (("authorization", f"Bearer {key.text}"), ("authorization", f"Bearer {key.text}")),
            (("authorization", f"Basic {key.text}"),),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                info(GetServerInfoRequest(), metadata=metadata)
            assert isinstance(caught.value, grpc.Call)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
