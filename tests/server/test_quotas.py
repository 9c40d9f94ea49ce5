"""What a tenant may have, and when it may have more."""

import asyncio
from typing import Any

import pytest

from loramux.errors import FailedPreconditionError, ResourceExhaustedError
from loramux_server.access.quotas import Quotas
from loramux_server.access.token_bucket import TokenBucket
from loramux_server.store.catalog import Catalog
from loramux_server.store.policy import Policy
from tests.support.fake import ManualClock
from tests.support.policies import KeptPolicies


def test_a_bucket_fills_again_and_never_over() -> None:
    bucket = TokenBucket(rate=2.0, capacity=4.0, now=0.0)
    assert bucket.wait(4, 0.0) == 0
    bucket.take(4, 0.0)
    assert bucket.wait(1, 0.0) == 0.5
    assert bucket.wait(1, 0.5) == 0
    assert bucket.wait(4, 100.0) == 0
    assert bucket.wait(5, 100.0) == float("inf")
    bucket.take(1, 100.0)
    bucket.give_back(3)
    assert bucket.wait(4, 100.0) == 0
    assert bucket.wait(4.5, 100.0) == float("inf")


class Setup:
    """Quotas of one tenant on a clock of our own."""

    def __init__(self, **policy: Any) -> None:
        self.clock = ManualClock()
        self.policies = KeptPolicies(Policy(tenant="acme", **policy))
        self.quotas = Quotas(self.policies, clock=self.clock)

    def request(self, tenant: str = "acme") -> ResourceExhaustedError | None:
        """Have a request that ends at once; return why it was refused, if it was."""
        try:
            with self.quotas.request(tenant):
                return None
        except ResourceExhaustedError as error:
            return error

    def tokens(self, most: int, used: int | None = None) -> ResourceExhaustedError | None:
        try:
            with self.quotas.tokens("acme", most) as reserved:
                reserved.num_used = most if used is None else used
                return None
        except ResourceExhaustedError as error:
            return error


def test_requests_a_second() -> None:
    setup = Setup(requests_per_second=2)
    refused = [setup.request() for _ in range(3)]
    assert refused[:2] == [None, None]
    error = refused[2]
    assert error is not None
    assert (error.reason, error.quota, error.retry_delay) == ("QUOTA_EXCEEDED", "tenant:acme", 0.5)
    assert "2 requests per second" in str(error)
    setup.clock.now += 0.5
    assert setup.request() is None
    assert setup.request() is not None
    assert setup.request("other") is None


def test_less_than_a_request_a_second() -> None:
    setup = Setup(requests_per_second=0.1)
    assert setup.request() is None
    error = setup.request()
    assert error is not None
    assert error.retry_delay == pytest.approx(10)


def test_requests_at_once() -> None:
    setup = Setup(concurrent_requests=2)
    with setup.quotas.request("acme"):
        with setup.quotas.request("acme"):
            error = setup.request()
            assert error is not None
            assert error.retry_delay is not None
            assert "2 concurrent requests" in str(error)
        assert setup.request() is None
    assert setup.request() is None


@pytest.mark.parametrize(
    ("policy", "what"),
    [
        ({"concurrent_requests": 2}, "2 concurrent requests"),
        ({"requests_per_second": 2.5}, "2.5 requests per second"),
    ],
)
def test_more_together_than_there_ever_may_be_is_not_to_be_tried_again(
    policy: dict[str, Any], what: str
) -> None:
    setup = Setup(**policy)
    with pytest.raises(FailedPreconditionError) as caught, setup.quotas.request("acme", 3):
        pass
    error = caught.value
    assert str(error) == (
        f"3 prompts count as 3 requests, and tenant 'acme' is limited to {what}; "
        "send at most 2 together"
    )
    assert (error.reason, error.field, error.quota) == ("QUOTA_EXCEEDED", "prompt", "tenant:acme")
    assert error.retry_delay is None
    with setup.quotas.request("acme", 2):
        pass
    with setup.quotas.request("other", 3):
        pass


def test_what_fails_is_not_under_way_any_more() -> None:
    setup = Setup(concurrent_requests=1)
    for failure in (ValueError, asyncio.CancelledError):
        with pytest.raises(failure), setup.quotas.request("acme"):
            raise failure
    assert setup.request() is None


def test_tokens_a_minute() -> None:
    setup = Setup(tokens_per_minute=60)
    assert setup.tokens(40) is None
    error = setup.tokens(40)
    assert error is not None
    assert error.retry_delay == pytest.approx(20)
    assert "60 tokens per minute; this request may use 40" in str(error)
    setup.clock.now += 20
    assert setup.tokens(40) is None


def test_tokens_that_were_not_used_come_back() -> None:
    setup = Setup(tokens_per_minute=60)
    for _ in range(6):
        assert setup.tokens(60, used=0) is None
    assert setup.tokens(60, used=10) is None
    assert setup.tokens(60) is not None
    assert setup.tokens(50) is None


def test_tokens_beyond_those_that_were_kept_are_owed_as_they_are_used() -> None:
    setup = Setup(tokens_per_minute=60)
    with setup.quotas.tokens("acme", 40) as reserved:
        reserved.use(30)
        assert setup.tokens(20) is None
        reserved.use(70)
        error = setup.tokens(1)
        assert error is not None
        assert error.retry_delay == pytest.approx(31)  # 20 were there; 30 of them are owed
    setup.clock.now += 50
    assert setup.tokens(20) is None


def test_tokens_of_a_request_that_fails_at_once_come_back() -> None:
    setup = Setup(tokens_per_minute=60)
    with pytest.raises(ValueError, match="at once"), setup.quotas.tokens("acme", 60):
        raise ValueError("at once")
    assert setup.tokens(60) is None


def test_waiting_does_not_help_who_wants_more_than_there_ever_is() -> None:
    error = Setup(tokens_per_minute=60).tokens(61)
    assert error is not None
    assert error.retry_delay is None


def test_policies_change_meanwhile() -> None:
    setup = Setup(requests_per_second=1)
    assert setup.request() is None
    assert setup.request() is not None
    setup.policies.kept[:] = [Policy(tenant="acme", requests_per_second=5)]
    setup.quotas.refresh()
    assert setup.request() is not None
    setup.clock.now += 1.0
    assert [setup.request() for _ in range(5)] == [None] * 5
    assert setup.request() is not None
    setup.policies.kept[:] = []
    setup.quotas.refresh()
    assert [setup.request() for _ in range(9)] == [None] * 9
    assert setup.quotas.policy("acme") == Policy(tenant="acme")


@pytest.mark.parametrize(("changed", "seconds"), [
    ({"tokens_per_minute": 60, "weight": 2}, 41), ({"tokens_per_minute": 600}, 4.1),
    ({"tokens_per_minute": 6}, 410), ({"tokens_per_minute": None}, 0),
])  # fmt: skip
def test_a_debt_outlasts_a_change_of_the_policy(changed: dict[str, Any], seconds: float) -> None:
    setup = Setup(tokens_per_minute=60)
    with setup.quotas.tokens("acme", 60) as reserved:
        reserved.use(100)
    setup.policies.kept[:] = [Policy(tenant="acme", **changed)]
    setup.quotas.refresh()
    error = setup.tokens(1)
    assert (error.retry_delay if error else 0) == pytest.approx(seconds)


def test_policies_are_kept_in_the_catalog(tmp_path: Any) -> None:
    catalog = Catalog.in_folder(tmp_path)
    policy = Policy(tenant="acme", requests_per_second=0.5, tokens_per_minute=9, weight=3)
    before = catalog.policies.revision()
    catalog.policies.set(Policy(tenant="acme", concurrent_requests=4))
    catalog.policies.set(policy)
    assert catalog.policies.all() == [policy]
    assert catalog.policies.revision() != before
    assert catalog.policies.remove("acme")
    assert not catalog.policies.remove("acme")
    assert catalog.policies.all() == []
    catalog.close()


def test_a_tenant_that_may_use_any_number_of_tokens_is_not_counted() -> None:
    setup = Setup(requests_per_second=2)
    assert setup.tokens(1 << 40) is None
