"""Priority orders what a tenant has, and moves nothing that another has."""

from typing import NamedTuple

import hypothesis.strategies as st
from hypothesis import given

from loramux_server.ranking import ranked


class Item(NamedTuple):
    number: int
    tenant: str
    priority: int


ITEMS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([-(1 << 31), -1, 0, 7])), max_size=12
)


@given(ITEMS)
def test_a_tenant_keeps_its_positions_and_fills_them_by_priority(
    drawn: list[tuple[str, int]],
) -> None:
    items = [Item(number, *each) for number, each in enumerate(drawn)]
    found = ranked(items)
    assert [item.tenant for item in found] == [item.tenant for item in items]
    for tenant in "abc":
        mine = [item for item in items if item.tenant == tenant]
        assert [item for item in found if item.tenant == tenant] == sorted(
            mine, key=lambda item: (item.priority, item.number)
        )
