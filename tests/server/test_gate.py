"""The gate before all services: who gets in, who is sent away, and who has to leave."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from loramux.v1 import generation_pb2
from loramux.v1.generation_pb2_grpc import GenerationServiceStub
from loramux_server.access.access_control import REFRESH_SECONDS, AccessControl
from loramux_server.access.caller import Caller, Role, caller
from loramux_server.access.gate import Gate
from loramux_server.access.key import Key
from loramux_server.access.server_secret import SECRET_FILE
from loramux_server.config import ConfigError, make_config
from loramux_server.store.times import now_in_utc
from loramux_server.transport.rpc import Calls, Context, generic_handler
from loramux_server.transport.slow_readers import SlowReaderGuard
from tests.support.access import Keys, shown

OK, DENIED = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED
UNKNOWN_CALLER = grpc.StatusCode.UNAUTHENTICATED
NOBODY = "test.Service"


class Answers:
    """Answers with who calls, or never."""

    def __init__(self) -> None:
        self.waiting: set[Caller] = set()
        self.leaving = 0.0
        """Seconds that a stream takes to clean up."""

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> generation_pb2.GenerateResponse:
        who = caller()
        return generation_pb2.GenerateResponse(request_id=f"{who.tenant} {who.role} {who.key_id}")

    async def StreamGenerate(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[generation_pb2.StreamGenerateResponse]:
        self.waiting.add(caller())
        try:
            yield generation_pb2.StreamGenerateResponse()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(self.leaving)
            self.waiting.remove(caller())


class Certificates:
    """Counts how often it is looked at."""

    def __init__(self) -> None:
        self.num_looks = 0

    def refresh(self) -> None:
        self.num_looks += 1


class Guarded:
    """A server behind an entrance, and what calls it."""

    def __init__(self, keys: Keys, gate: Gate, channel: grpc.aio.Channel, answers: Answers) -> None:
        self.keys = keys
        self.gate = gate
        self.answers = answers
        self._channel = channel
        self._stub = GenerationServiceStub(channel)

    async def call(self, key: Key | str | None) -> tuple[grpc.StatusCode, str]:
        """Return the status of a call, and its message or who the server says it was."""
        text = key.text if isinstance(key, Key) else key
        try:
            answer = await self._stub.Generate(
                generation_pb2.GenerateRequest(), metadata=shown(text), timeout=60
            )
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return OK, answer.request_id

    async def becomes(self, key: Key, code: grpc.StatusCode) -> None:
        """Wait until a call with `key` ends so."""
        async with asyncio.timeout(60):
            while (await self.call(key))[0] is not code:  # noqa: ASYNC110 - nothing to await
                await asyncio.sleep(0.02)

    def stream(self, key: Key | None) -> Any:
        return self._stub.StreamGenerate(
            generation_pb2.GenerateRequest(), metadata=shown(key.text if key else None), timeout=120
        )

    async def health(self, key: str | None) -> int:
        stub = health_pb2_grpc.HealthStub(self._channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), metadata=shown(key), timeout=60)
        return int(answer.status)

    async def unlisted(self, key: Key) -> grpc.StatusCode:
        """Call a method about which nobody decided, and return its status."""
        method: Any = self._channel.unary_unary(f"/{NOBODY}/Anything")
        with suppress(grpc.aio.AioRpcError):
            await method(b"", metadata=shown(key.text), timeout=60)
            return OK
        call = method(b"", metadata=shown(key.text), timeout=60)
        code: grpc.StatusCode = await call.code()
        return code


@asynccontextmanager
async def guarded(
    folder: Path, keys: Keys, tls: Certificates | None = None, **settings: object
) -> AsyncIterator[Guarded]:
    config = make_config({"model": "", **settings})
    access_control = AccessControl(keys.catalog, folder, config)
    answers = Answers()
    server = grpc.aio.server(interceptors=[access_control.gate])
    service = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]
    servicer = health.aio.HealthServicer()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)

    async def anything(request: bytes, context: Context) -> bytes:
        return b""

    server.add_generic_rpc_handlers(
        (
            generic_handler(service, answers, Calls(), SlowReaderGuard(30.0, lambda: None)),
            grpc.method_handlers_generic_handler(
                NOBODY, {"Anything": grpc.unary_unary_rpc_method_handler(cast(Any, anything))}
            ),
        )
    )
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    watching = asyncio.create_task(access_control.watch(cast(Any, tls)))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Guarded(keys, access_control.gate, channel, answers)
    watching.cancel()
    await server.stop(None)


@pytest.fixture
def keys(tmp_path: Path) -> Any:
    keys = Keys(tmp_path)
    yield keys
    keys.close()


async def test_a_handler_knows_who_calls(tmp_path: Path, keys: Keys) -> None:
    user = keys.make("acme", Role.USER)
    async with guarded(tmp_path, keys) as server:
        assert await server.call(user) == (OK, f"acme user {user.id}")


async def test_without_keys_anybody_is_the_administrator(tmp_path: Path, keys: Keys) -> None:
    async with guarded(tmp_path, keys) as server:
        assert await server.call(None) == (OK, "public admin ")
        assert await server.unlisted(Key("x", "x")) is DENIED


async def test_who_is_not_known_or_may_not_is_sent_away(tmp_path: Path, keys: Keys) -> None:
    user, viewer = keys.make("acme", Role.USER), keys.make("acme", Role.VIEWER)
    async with guarded(tmp_path, keys) as server:
        for nobody in (None, "junk", keys.with_another_secret(user)):
            code, said = await server.call(nobody)
            assert code is UNKNOWN_CALLER
            assert said.startswith("the call needs a valid key")
        code, said = await server.call(viewer)
        assert code is DENIED
        assert said == (
            "a caller with role 'viewer' may not call loramux.v1.GenerationService.Generate"
        )
        assert (await server.call(user))[0] is OK


async def test_who_belongs_to_a_disabled_tenant_is_refused(tmp_path: Path, keys: Keys) -> None:
    user, admin = keys.make("acme", Role.USER), keys.make("acme", Role.ADMIN)
    keys.catalog.disabled_tenants.add("acme", now_in_utc())
    async with guarded(tmp_path, keys) as server:
        for key in (user, admin):
            code, said = await server.call(key)
            assert code is DENIED
            assert "acme" in said


async def test_calls_of_a_tenant_that_is_disabled_meanwhile_end(tmp_path: Path, keys: Keys) -> None:
    leaving, staying = keys.make("acme", Role.USER), keys.make("umbrella", Role.USER)
    async with guarded(tmp_path, keys) as server:
        ended, going_on = server.stream(leaving), server.stream(staying)
        assert await ended.read() is not grpc.aio.EOF
        assert await going_on.read() is not grpc.aio.EOF
        keys.catalog.disabled_tenants.add("acme", now_in_utc())
        with pytest.raises(grpc.aio.AioRpcError, match="acme") as caught:
            await asyncio.wait_for(ended.read(), 60)
        assert caught.value.code() is DENIED
        assert (await server.call(leaving))[0] is DENIED
        assert not going_on.done()
        keys.catalog.disabled_tenants.remove("acme")
        await server.becomes(leaving, OK)


async def test_nothing_is_kept_of_calls_that_were_ended(tmp_path: Path, keys: Keys) -> None:
    user = keys.make("acme", Role.USER)
    async with guarded(tmp_path, keys) as server:
        stream = server.stream(user)
        assert await stream.read() is not grpc.aio.EOF
        keys.manager.revoke(user.id)
        assert await stream.code() is UNKNOWN_CALLER
        gate = server.gate
        async with asyncio.timeout(60):
            while gate._running or gate._revoked:  # noqa: ASYNC110 - nothing to await
                await asyncio.sleep(0.01)


async def test_a_call_that_was_ended_cleans_up_undisturbed(tmp_path: Path, keys: Keys) -> None:
    user = keys.make("acme", Role.USER)
    async with guarded(tmp_path, keys) as server:
        server.answers.leaving = 3 * REFRESH_SECONDS
        stream = server.stream(user)
        assert await stream.read() is not grpc.aio.EOF
        keys.manager.revoke(user.id)
        assert await stream.code() is UNKNOWN_CALLER
        assert not server.answers.waiting


async def test_nobody_may_call_what_nobody_decided_about(tmp_path: Path, keys: Keys) -> None:
    admin = keys.make("acme", Role.ADMIN)
    async with guarded(tmp_path, keys) as server:
        assert await server.unlisted(admin) is DENIED


@pytest.mark.parametrize("key", [None, "junk"])
async def test_health_is_for_everybody(tmp_path: Path, keys: Keys, key: str | None) -> None:
    keys.make("acme", Role.USER)
    async with guarded(tmp_path, keys) as server:
        assert await server.health(key) == health_pb2.HealthCheckResponse.SERVING


async def test_a_key_that_is_made_meanwhile_opens_the_server(tmp_path: Path, keys: Keys) -> None:
    keys.make("acme", Role.USER)
    async with guarded(tmp_path, keys) as server:
        await server.becomes(keys.make("umbrella", Role.USER), OK)


async def test_calls_of_a_revoked_key_end_and_others_go_on(tmp_path: Path, keys: Keys) -> None:
    leaving, staying = keys.make("acme", Role.USER), keys.make("acme", Role.USER)
    async with guarded(tmp_path, keys) as server:
        ended, going_on = server.stream(leaving), server.stream(staying)
        assert await ended.read() is not grpc.aio.EOF
        assert await going_on.read() is not grpc.aio.EOF
        keys.manager.revoke(leaving.id)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(ended.read(), 60)
        assert caught.value.code() is UNKNOWN_CALLER
        await asyncio.sleep(0.6)  # over two looks: nothing else ends
        assert not going_on.done()
        assert {who.key_id for who in server.answers.waiting} == {staying.id}
        assert (await server.call(leaving))[0] is UNKNOWN_CALLER
        assert (await server.call(staying))[0] is OK


async def test_who_came_while_it_was_open_leaves_when_it_is_closed(
    tmp_path: Path, keys: Keys
) -> None:
    async with guarded(tmp_path, keys) as server:
        stream = server.stream(None)
        assert await stream.read() is not grpc.aio.EOF
        await asyncio.sleep(0.6)
        assert not stream.done()
        keys.make("acme", Role.USER)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(stream.read(), 60)
        assert caught.value.code() is UNKNOWN_CALLER


async def test_a_call_that_its_caller_gives_up_is_cancelled(tmp_path: Path, keys: Keys) -> None:
    user = keys.make("acme", Role.USER)
    async with guarded(tmp_path, keys) as server:
        stream = server.stream(user)
        assert await stream.read() is not grpc.aio.EOF
        stream.cancel()
        assert await stream.code() is grpc.StatusCode.CANCELLED
        async with asyncio.timeout(60):
            while server.answers.waiting:  # noqa: ASYNC110 - nothing to await
                await asyncio.sleep(0.01)


async def test_keys_that_cannot_be_read_stay_as_they_were_and_that_is_said_once(
    tmp_path: Path, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    user, secret, tls = keys.make("acme", Role.USER), tmp_path / SECRET_FILE, Certificates()
    async with guarded(tmp_path, keys, tls) as server:
        later = keys.make("acme", Role.USER)
        secret.chmod(0o644)
        looks = tls.num_looks
        async with asyncio.timeout(60):
            while tls.num_looks < looks + 3:  # noqa: ASYNC110 - certificates are looked at anyhow
                await asyncio.sleep(0.02)
        assert (await server.call(user))[0] is OK
        reported = [r.message for r in caplog.records if "keeping the current ones" in r.message]
        assert len(reported) == 1
        assert "accessible to other users" in reported[0]
        secret.chmod(0o600)
        await server.becomes(later, OK)
        secret.chmod(0o644)
        keys.manager.revoke(later.id)
        async with asyncio.timeout(60):
            while sum("keeping the" in r.message for r in caplog.records) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


class Broken(Certificates):
    """Fails as certificates are not known to fail."""

    def refresh(self) -> None:
        super().refresh()
        raise RuntimeError("broken")


async def test_keys_are_looked_at_again_after_a_look_that_failed_or_could_not_begin(
    tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, tls = keys.make("acme", Role.USER), Broken()
    async with guarded(tmp_path, keys, tls) as server:
        tried = asyncio.Event()

        def no_thread(*_: object) -> None:
            tried.set()
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(asyncio, "to_thread", no_thread)
            await asyncio.wait_for(tried.wait(), 60)
        keys.manager.revoke(user.id)
        await asyncio.wait_for(server.becomes(user, UNKNOWN_CALLER), 20)
        assert tls.num_looks


async def test_there_is_a_pause_between_two_looks_at_keys(tmp_path: Path, keys: Keys) -> None:
    tls, clock = Certificates(), asyncio.get_running_loop()
    async with guarded(tmp_path, keys, tls):
        looks, begin = tls.num_looks, clock.time()
        await asyncio.sleep(2 * REFRESH_SECONDS)
        assert tls.num_looks - looks <= (clock.time() - begin) / REFRESH_SECONDS + 1


async def test_a_server_with_keys_only_that_are_over_is_open_to_nobody(
    tmp_path: Path, keys: Keys
) -> None:
    keys.revoked("acme", Role.ADMIN)
    async with guarded(tmp_path, keys) as server:
        assert (await server.call(None))[0] is UNKNOWN_CALLER
    with pytest.raises(ConfigError, match=r"lacks TLS: .* and keys: make one"):
        AccessControl(keys.catalog, tmp_path, make_config({"model": "", "listen": "0.0.0.0:1"}))
    keys.make("acme", Role.USER)
    with pytest.raises(ConfigError, match=r"--tls-cert and --tls-key\. Or"):
        AccessControl(keys.catalog, tmp_path, make_config({"model": "", "listen": "0.0.0.0:1"}))


def test_a_secret_that_cannot_be_trusted_keeps_the_server_from_starting(
    tmp_path: Path, keys: Keys
) -> None:
    keys.make("acme", Role.USER)
    (tmp_path / SECRET_FILE).chmod(0o644)
    with pytest.raises(ConfigError, match="accessible to other users"):
        AccessControl(keys.catalog, tmp_path, make_config({"model": ""}))


@pytest.mark.parametrize(("insecure", "has_key", "domain", "is_told"), [
    (True, False, None, True), (True, True, None, False), (False, False, None, False),
    (True, False, "example.org", False),
])  # fmt: skip
def test_that_anybody_may_do_anything_is_said(
    tmp_path: Path, keys: Keys, caplog: pytest.LogCaptureFixture, insecure: bool, has_key: bool,
    domain: str | None, is_told: bool,
) -> None:  # fmt: skip
    if has_key:
        keys.make("acme", Role.USER)
    settings = {"model": "", "insecure": insecure}
    if domain:
        settings |= {"tls_client_domain": domain, "tls_client_ca": "a", "tls_cert": "b",
                     "tls_key": "c"}  # fmt: skip
    with caplog.at_level(logging.WARNING):
        AccessControl(keys.catalog, tmp_path, make_config(settings))
    assert ("admin rights" in caplog.text) == is_told
