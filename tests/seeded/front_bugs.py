"""Mistakes that a frontend could have, and an engine in what it owes to it, each a small patch."""

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NoReturn

import grpc
import pytest

from loramux.errors import InternalError, LoramuxError
from loramux_server.access import gate
from loramux_server.access.caller import Caller, Permission, Role
from loramux_server.access.key import key_digest, parse_key
from loramux_server.access.key_ring import KeyRing
from loramux_server.access.rules import RULES, Rule
from loramux_server.engine.engine import Engine
from loramux_server.engine_link.client import EngineClient
from loramux_server.server import Server
from loramux_server.services.calls import Calls
from loramux_server.services.generation import service as generation
from loramux_server.services.generation.output import Output
from loramux_server.services.limits import check_own_tokens
from loramux_server.services.observer import Observer
from loramux_server.services.submission import Submission
from loramux_server.transport.listener import Listener
from loramux_server.transport.rpc import Context, abort
from loramux_server.waiting_room.limits import RoomLimits, RoomUsage
from loramux_server.wire.messages import Cancel, ToEngine
from tests.support.models import byte_tokenizer

Patch = pytest.MonkeyPatch


def _ignore_cancels(patch: Patch, where: str) -> None:
    """Let an engine take no notice of what is given up while it is in `where`."""
    receive = Engine.receive

    def receive_(self: Engine, messages: Iterable[ToEngine]) -> None:
        deaf = {request.request_id for request in getattr(self._scheduler, where)}
        receive(self, [m for m in messages if not (isinstance(m, Cancel) and m.request_id in deaf)])

    patch.setattr(Engine, "receive", receive_)


def ignore_a_cancel_in_the_queue(patch: Patch) -> None:
    _ignore_cancels(patch, "waiting")


def ignore_a_cancel_in_decode(patch: Patch) -> None:
    _ignore_cancels(patch, "running")


def _tell_of_no_cancel(patch: Patch, *, has_tokens: bool) -> None:
    """Let a frontend keep from the engine that a call is given up that has tokens, or has none."""
    push, cancel = Output.push, Submission._cancel
    begun: list[bool] = []

    def push_(self: Output, *arguments: Any) -> None:
        begun.append(True)
        push(self, *arguments)

    def cancel_(self: Submission[Any]) -> None:
        if bool(begun) != has_tokens:
            cancel(self)

    patch.setattr(Output, "push", push_)
    patch.setattr(Submission, "_cancel", cancel_)


def tell_of_no_cancel_in_the_queue(patch: Patch) -> None:
    _tell_of_no_cancel(patch, has_tokens=False)


def tell_of_no_cancel_in_decode(patch: Patch) -> None:
    _tell_of_no_cancel(patch, has_tokens=True)


def tell_one_call_of_the_death(patch: Patch) -> None:
    end_all = EngineClient._end_all

    def end_all_(self: EngineClient, error: LoramuxError) -> None:
        for number in list(self._calls)[1:]:
            del self._calls[number]
        end_all(self, error)

    patch.setattr(EngineClient, "_end_all", end_all_)


def show_the_health_of_the_start(patch: Patch) -> None:
    show_health = Listener.show_health
    patch.setattr(Listener, "show_health", lambda self, is_ready: show_health(self, True))


def stop_the_engine_before_the_calls(patch: Patch) -> None:
    leave = Server.__aexit__

    async def leave_(self: Server, *error: object) -> None:
        await self._engine.process.stop()
        await leave(self, *error)

    patch.setattr(Server, "__aexit__", leave_)


def stop_reading_the_engine_in_a_drain(patch: Patch) -> None:
    leave = Server.__aexit__

    async def leave_(self: Server, *error: object) -> None:
        supervisor = self._engine.process._supervisor
        assert supervisor is not None
        supervisor.cancel()
        await asyncio.wait([supervisor])
        await leave(self, *error)

    patch.setattr(Server, "__aexit__", leave_)


def count_no_bytes(patch: Patch) -> None:
    over = RoomLimits.over

    def over_(self: RoomLimits, taken: RoomUsage, more: RoomUsage) -> tuple[str, str] | None:
        return over(self, taken, replace(more, bytes=0))

    patch.setattr(RoomLimits, "over", over_)


def answer_with_the_text_of_exceptions(patch: Patch) -> None:
    async def abort_(context: Context, error: Exception, method: str) -> NoReturn:
        if not isinstance(error, LoramuxError | grpc.aio.BaseError):
            error = InternalError(f"internal error: {error}", reason="INTERNAL")
        await abort(context, error, method)

    patch.setattr("loramux_server.transport.rpc.abort", abort_)


def compare_keys_letter_by_letter(patch: Patch) -> None:
    def find(self: KeyRing, text: str) -> Caller | None:
        known, key = self._known, parse_key(text)
        record = known.records.get(key.id) if key else None
        if not (key and record and record.is_valid(self._now())):
            return None
        is_right = key_digest(key, known.secret) == bytes.fromhex(record.digest)
        return Caller(record.tenant, Role(record.role), record.id) if is_right else None

    patch.setattr(KeyRing, "find", find)


def forget_a_rule(patch: Patch) -> None:
    patch.delitem(RULES, "loramux.v1.AdapterService.DownloadAdapter")


def leave_a_method_to_everybody(patch: Patch) -> None:
    method = "loramux.v1.QuarantineService.ListQuarantined"
    patch.setitem(RULES, method, replace(RULES[method], permission=Permission.NONE))


def let_pass_what_has_no_rule(patch: Patch) -> None:
    class Lenient(dict[str, Rule]):
        def get(self, method: str, default: object = None) -> Rule:
            return self[method] if method in self else Rule(Permission.VIEW)

    patch.setattr(gate, "RULES", Lenient(RULES))


def take_the_tokenizer_for_the_vocabulary(patch: Patch) -> None:
    def check(request: Any, prompt: Any, vocab_size: int) -> None:
        check_own_tokens(request, prompt, len(byte_tokenizer()))

    patch.setattr(generation, "check_own_tokens", check)


def label_by_what_was_asked_for(patch: Patch) -> None:
    observed, placed = Calls.observed, Calls.placed
    observers: list[Observer] = []

    @contextlib.contextmanager
    def observed_(self: Calls) -> Iterator[Observer]:
        with observed(self) as observer:
            observers.append(observer)
            yield observer

    def placed_(self: Calls, request: Any, *rest: Any) -> Any:
        observers[-1].resolved(request.adapter, 0)
        return placed(self, request, *rest)

    patch.setattr(Calls, "observed", observed_)
    patch.setattr(Calls, "placed", placed_)
