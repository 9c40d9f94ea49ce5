"""Quotas of tenants: request rate, token rate and concurrent requests."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from loramux.errors import FailedPreconditionError, ResourceExhaustedError
from loramux_server.access.access_file import AccessFile
from loramux_server.access.token_bucket import TokenBucket
from loramux_server.store.policies import Policies
from loramux_server.store.policy import Policy

_MINUTE = 60.0
_BUSY_DELAY = 1.0
"""Retry delay in seconds if the tenant's own requests have to end first."""


class Reserved:
    """Tokens reserved for a request; unused ones are returned.

    Some requests may use more than was reserved. The excess is taken as it is used, into debt if
    need be, and delays the tenant's next requests until the bucket has refilled.
    """

    def __init__(self, num_tokens: int, take: Callable[[int], None]) -> None:
        """Record a reservation.

        Args:
            num_tokens: Tokens reserved.
            take: Takes so many more from the bucket.
        """
        self.num_tokens = num_tokens
        self.num_used = 0
        self._take = take

    def use(self, num_used: int) -> None:
        """Set the total number of tokens used so far."""
        self.num_used = num_used
        if num_used > self.num_tokens:
            self._take(num_used - self.num_tokens)
            self.num_tokens = num_used


@dataclass(slots=True)
class _Use:
    """The usage of a tenant under its policy."""

    policy: Policy
    requests: TokenBucket | None
    tokens: TokenBucket | None
    running: int = 0


class Quotas:
    """Enforces the policies of tenants. Lives on the event loop, except `refresh`."""

    def __init__(
        self,
        policies: Policies,
        file: AccessFile | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the policies.

        Args:
            policies: The policies of the catalog.
            file: Lists others, which take precedence.
            clock: A monotonic clock, in seconds.
        """
        self._policies = policies
        self._file = file or AccessFile(None)
        self._clock = clock
        self._revision = policies.revision()
        self._known = {policy.tenant: policy for policy in policies.all()}
        self._uses: dict[str, _Use] = {}

    def refresh(self) -> None:
        """Reload the policies of the catalog if they changed; may block."""
        revision = self._policies.revision()
        if revision != self._revision:
            self._known = {policy.tenant: policy for policy in self._policies.all()}
            self._revision = revision

    def policy(self, tenant: str) -> Policy:
        """Return the policy of a tenant, by default an unlimited one."""
        return self._policy(tenant) or Policy(tenant=tenant)

    @contextmanager
    def request(self, tenant: str, num_calls: int = 1) -> Iterator[None]:
        """Count a request of `tenant` as running during the block.

        Args:
            tenant: The tenant.
            num_calls: Number of requests made at once, including this one.

        Raises:
            FailedPreconditionError: The policy can never admit so many at once.
            ResourceExhaustedError: Too many started recently, or are running.
        """
        use = self._use(tenant)
        if use is None:
            yield
            return
        policy, now = use.policy, self._clock()
        limit = policy.concurrent_requests
        if limit is not None and num_calls > limit:
            raise _unreachable(tenant, num_calls, f"{limit} concurrent requests", limit)
        if use.requests and num_calls > use.requests.capacity:
            per_second = f"{policy.requests_per_second:g} requests per second"
            raise _unreachable(tenant, num_calls, per_second, int(use.requests.capacity))
        if limit is not None and use.running >= limit:
            raise _exceeded(tenant, f"{limit} concurrent requests", _BUSY_DELAY)
        if use.requests:
            if delay := use.requests.wait(1, now):
                raise _exceeded(
                    tenant, f"{policy.requests_per_second:g} requests per second", delay
                )
            use.requests.take(1, now)
        use.running += 1
        try:
            yield
        finally:
            use.running -= 1

    @contextmanager
    def tokens(self, tenant: str, num_tokens: int) -> Iterator[Reserved]:
        """Reserve tokens for a request of `tenant`; unused ones are returned after the block.

        Args:
            tenant: The tenant.
            num_tokens: The most that the request is expected to use, its prompt included.

        Raises:
            ResourceExhaustedError: The tenant used too many recently, or the request needs more
                than the quota can ever grant.
        """
        use = self._use(tenant)
        bucket = use.tokens if use else None
        if bucket is None:
            yield Reserved(num_tokens, lambda _: None)
            return
        now = self._clock()
        if delay := bucket.wait(num_tokens, now):
            what = f"{bucket.capacity:.0f} tokens per minute; this request may use {num_tokens}"
            raise _exceeded(tenant, what, delay)
        bucket.take(num_tokens, now)
        reserved = Reserved(num_tokens, lambda more: bucket.take(more, self._clock()))
        try:
            yield reserved
        finally:
            bucket.give_back(reserved.num_tokens - reserved.num_used)

    def _use(self, tenant: str) -> _Use | None:
        """Return the usage of `tenant`, or None if it has no policy."""
        policy = self._policy(tenant)
        if policy is None:
            self._uses.pop(tenant, None)
            return None
        use = self._uses.get(tenant)
        if use is None:
            use = self._uses[tenant] = _Use(policy, None, None)
            self._set_buckets(use)
        elif use.policy != policy:
            use.policy = policy
            self._set_buckets(use)
        return use

    def _policy(self, tenant: str) -> Policy | None:
        return self._file.listed.policies.get(tenant) or self._known.get(tenant)

    def _set_buckets(self, use: _Use) -> None:
        """Give `use` the buckets of its policy; buckets that it has keep their level, or debt."""
        rate, per_minute = use.policy.requests_per_second, use.policy.tokens_per_minute
        use.requests = None if rate is None else self._bucket(use.requests, rate, max(1.0, rate))
        use.tokens = (
            None
            if per_minute is None
            else self._bucket(use.tokens, per_minute / _MINUTE, per_minute)
        )

    def _bucket(self, old: TokenBucket | None, rate: float, capacity: float) -> TokenBucket:
        """Return `old` with another rate and capacity, or a new one, which is full."""
        now = self._clock()
        if old is None:
            return TokenBucket(rate=rate, capacity=capacity, now=now)
        old.resize(rate=rate, capacity=capacity, now=now)
        return old


def _unreachable(tenant: str, num_calls: int, what: str, most: int) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{num_calls} prompts count as {num_calls} requests, and tenant {tenant!r} is limited to "
        f"{what}; send at most {most} together",
        reason="QUOTA_EXCEEDED",
        field="prompt",
        quota=f"tenant:{tenant}",
    )


def _exceeded(tenant: str, what: str, delay: float) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"tenant {tenant!r} is limited to {what}",
        reason="QUOTA_EXCEEDED",
        retry_delay=delay if math.isfinite(delay) else None,
        quota=f"tenant:{tenant}",
    )
