"""Adapters that are fetched when a request first names them: `--resolve`."""

import asyncio
import datetime
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from loramux.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    LoramuxError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from loramux_server.access.caller import Permission, caller
from loramux_server.access.naming import named
from loramux_server.access.rules import RULES, Rule
from loramux_server.observe.audit import Audit
from loramux_server.observe.audited_actions import ADAPTER_RESOLVE
from loramux_server.services.adapter_fields import MAX_ADAPTERS
from loramux_server.services.adapters.fetch_shares import Shares
from loramux_server.services.adapters.imports import Imports
from loramux_server.services.adapters.intake import Registration
from loramux_server.services.adapters.storage import storage_errors
from loramux_server.services.deadline import Deadline
from loramux_server.sources.templates import Templates
from loramux_server.store.record import AdapterRecord
from loramux_server.store.reference import LATEST, Reference, full_name, parse_reference
from loramux_server.store.registry import Registry
from loramux_server.transport.rpc import Context, Service

_log = logging.getLogger(__name__)

FORGET_SECONDS = 30.0
"""How long it is cached that an adapter does not exist or cannot be served."""
_MAX_MISSING = 1 << 14
_UNCOUNTED = frozenset({"TokenizationService", "ResidencyService"})
"""Services whose calls do not count as requests in metrics, as they ask for no model output."""


class Resolver:
    """Fetches adapters from templated locations when they are first named.

    Runs on the event loop. Where to look is the operator's decision, never a caller's: a request
    only chooses a name of its own tenant, or a public one.
    """

    def __init__(
        self,
        templates: Templates,
        imports: Imports,
        registry: Registry,
        audit: Audit,
        *,
        default_timeout: float,
        ttl: float = 0.0,
        on_result: Callable[[str], object] = lambda outcome: None,
        on_refused: Callable[[LoramuxError], object] = lambda error: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            templates: Where to look, in this order.
            imports: Fetches, checks and registers.
            registry: The adapters already registered.
            audit: Records what was fetched, and for whom.
            default_timeout: Seconds that a call without a deadline waits.
            ttl: Seconds after which a fetched adapter is deleted, to be fetched again when it is
                next named; 0 keeps it.
            on_result: Called with `ok`, `not_found`, `refused` or `unavailable` for each fetch.
            on_refused: Called with the error of a request that failed before it reached its
                service.
            clock: Monotonic seconds.
        """
        self._templates = templates
        self._imports = imports
        self._registry = registry
        self._audit = audit
        self._default_timeout = default_timeout
        self._ttl = datetime.timedelta(seconds=ttl) if ttl else None
        self._on_result = on_result
        self.on_refused = on_refused
        self._clock = clock
        self._shares = Shares()
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._end = asyncio.get_running_loop().create_future()
        self._missing: OrderedDict[str, tuple[float, _Refusal | None]] = OrderedDict()
        """Adapter -> until when it is not looked for, and why it cannot be served (None if not
        found)."""

    def over(self, service: Service) -> Service:
        """Wrap `service` so that its methods first fetch the adapters that they are asked for."""
        if any(_resolves(RULES[method.full_name]) for method in service.descriptor.methods):
            return _Resolved(service, self)
        return service

    async def bring(self, request: Message, rule: Rule, context: Context) -> None:
        """Fetch each adapter that `request` names and that is not registered, if it exists.

        Raises:
            DeadlineExceededError: It took longer than the call's deadline.
            FailedPreconditionError: What was found cannot be served.
            ResourceExhaustedError: Too many are being fetched, or the tenant's storage is full.
            UnavailableError: A source does not answer, or the server is shutting down.
        """
        references = list(islice(_references(request, rule), MAX_ADAPTERS + 1))
        if len(references) > MAX_ADAPTERS:
            return  # the service refuses so many
        for reference, field in references:
            if reference.tag in ("", LATEST) and not self._registry.has(reference):
                name = full_name(reference.tenant, reference.name)
                with self._shares.waiting(caller().tenant, request.ByteSize(), field):
                    async with Deadline.of(context, self._default_timeout).ending():
                        await self._fetched(name, reference, field)

    def give_up(self) -> None:
        """Fail calls that still wait, because the server is shutting down."""
        if not self._end.done():
            self._end.set_result(None)
        for task in self._fetching.values():
            task.cancel()

    async def close(self) -> None:
        """Cancel all fetches."""
        self.give_up()
        await asyncio.gather(*self._fetching.values(), return_exceptions=True)

    async def _fetched(self, name: str, reference: Reference, field: str) -> None:
        until, why = self._missing.get(name, (0.0, None))
        if self._clock() < until:
            if why:
                raise why.error(field)
            return
        task = self._fetching.get(name)
        if task is None:
            tenant = caller().tenant
            slots = self._shares.begin(tenant, field)
            task = asyncio.create_task(self._fetch(name, reference, field, slots))
            self._fetching[name] = task
            task.add_done_callback(partial(self._ended, name, tenant))
        # The fetch goes on without its caller: others may wait for it, and a retry finds it done.
        await asyncio.wait((task, self._end), return_when=asyncio.FIRST_COMPLETED)
        if not task.done() or task.cancelled():
            raise UnavailableError(
                "the server is shutting down; try again",
                reason="ENGINE_UNAVAILABLE",
                retry_delay=1.0,
            )
        task.result()

    def _ended(self, name: str, tenant: str, task: "asyncio.Task[None]") -> None:
        del self._fetching[name]
        self._shares.end(tenant)
        if not task.cancelled():
            task.exception()  # marks it as retrieved: no caller may be left

    async def _fetch(
        self, name: str, reference: Reference, field: str, slots: asyncio.Semaphore
    ) -> None:
        async with slots:
            await self._look(name, reference, field)

    async def _look(self, name: str, reference: Reference, field: str) -> None:
        # A version that was registered meanwhile takes precedence.
        wanted = Registration(
            name=name, must_not_exist=False, if_absent=True, ttl=self._ttl, field=field
        )
        for opening in self._templates.openings(reference):
            try:
                with storage_errors():
                    record, is_new = await self._imports.bring(wanted, opening)
            except NotFoundError:
                continue
            except (InvalidArgumentError, FailedPreconditionError) as error:
                _log.warning("adapter %s cannot be served: %s", name, error)
                self._on_result("refused")
                refusal = _Refusal(name, _public_reason(error), error.reason)
                self._miss(name, refusal)
                raise refusal.error(field) from None
            except LoramuxError as error:
                self._on_result("unavailable")
                _log.warning("adapter %s cannot be fetched at present: %s", name, error)
                if isinstance(error, ResourceExhaustedError):
                    raise
                raise UnavailableError(
                    f"adapter {name!r} cannot be fetched at present", reason="SOURCE_UNAVAILABLE",
                    field=field, retry_delay=5.0,
                ) from None  # fmt: skip
            self._on_result("ok")
            self._missing.pop(name, None)
            if is_new:
                _log.info("fetched adapter %s from %s", record, record.origin)
                await self._audit_fetch(record)
            return
        self._on_result("not_found")
        self._miss(name, None)

    async def _audit_fetch(self, record: AdapterRecord) -> None:
        who = caller()
        await self._audit.record(
            ADAPTER_RESOLVE, tenant=who.tenant, key=who.key_id, role=str(who.role),
            adapter=str(record), digest=record.digest, outcome="OK",
        )  # fmt: skip

    def _miss(self, name: str, why: "_Refusal | None") -> None:
        self._missing[name] = self._clock() + FORGET_SECONDS, why
        self._missing.move_to_end(name)
        if len(self._missing) > _MAX_MISSING:
            self._missing.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why an adapter that was found cannot be served."""

    name: str
    why: str
    reason: str

    def error(self, field: str) -> FailedPreconditionError:
        """Return the error for a request whose `field` names the adapter."""
        return FailedPreconditionError(
            f"adapter {self.name!r} was found, but cannot be served: {self.why}",
            reason=self.reason, field=field,
        )  # fmt: skip


class _Resolved:
    """A service whose adapters are fetched first."""

    def __init__(self, service: Service, resolver: Resolver) -> None:
        self.descriptor: ServiceDescriptor = service.descriptor
        for method in service.descriptor.methods:
            behaviour = getattr(service, method.name)
            rule = RULES[method.full_name]
            if _resolves(rule):
                behaviour = _after(behaviour, resolver, rule, method)
            setattr(self, method.name, behaviour)


def _after(
    behaviour: Callable[..., Any], resolver: Resolver, rule: Rule, method: MethodDescriptor
) -> Callable[..., Any]:
    """Wrap `behaviour` so that the adapters that its request names are fetched first."""
    is_counted = method.containing_service.name not in _UNCOUNTED

    async def bring(request: Message, context: Context) -> None:
        try:
            await resolver.bring(request, rule, context)
        except LoramuxError as error:
            if is_counted:
                resolver.on_refused(error)
            raise

    if method.server_streaming:

        async def stream(request: Message, context: Context) -> AsyncGenerator[Message, None]:
            await bring(request, context)
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response

        return stream

    async def call(request: Message, context: Context) -> Message:
        await bring(request, context)
        answer: Awaitable[Message] = behaviour(request, context)
        return await answer

    return call


def _public_reason(error: LoramuxError) -> str:
    """Return why something cannot be served, for callers: without its location."""
    if error.reason == "SOURCE_NOT_READABLE":
        return "its source denies the server access"
    return str(error)


def _resolves(rule: Rule) -> bool:
    return rule.permission is Permission.GENERATE and bool(rule.fields)


def _references(request: Message, rule: Rule) -> Iterator[tuple[Reference, str]]:
    """Yield each adapter that a request names, and in which field."""
    for path in rule.fields:
        for message, field, shown in named(request, path):
            if text := getattr(message, field):
                try:
                    yield parse_reference(text, shown), shown
                except InvalidArgumentError:
                    continue  # the service reports what is wrong with it
