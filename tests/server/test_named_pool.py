"""Numbers with holders and names; no tensors."""

import pytest

from loramux_server.engine.named_pool import NamedPool


def remembered(pool: NamedPool, *names: bytes) -> dict[bytes, int]:
    """Take, name and release a number for each of `names`."""
    taken = {name: pool.take() for name in names}
    for name, number in taken.items():
        pool.name(number, name)
        pool.release(number)
    return taken


def test_a_number_is_one_holders_and_comes_back() -> None:
    pool = NamedPool([1, 2])
    first, second = pool.take(), pool.take()
    assert {first, second} == {1, 2}
    assert pool.num_free == 0
    pool.release(first)
    assert pool.take() == first
    pool.check([1, 2])
    for held in ([1], [1, 2, 2], [1, 2, 3]):
        with pytest.raises(AssertionError, match="leaked"):
            pool.check(held)


def test_what_was_remembered_first_goes_first_and_what_is_held_stays() -> None:
    pool = NamedPool(range(3))
    of = remembered(pool, b"a", b"b", b"c")
    pool.hold(of[b"a"])
    assert pool.take() == of[b"b"]
    assert pool.find(b"b") is None
    assert pool.take() == of[b"c"]
    assert pool.num_free == 0
    assert pool.find(b"a") == of[b"a"]


def test_what_several_hold_is_free_after_the_last() -> None:
    pool = NamedPool(range(1))
    number = pool.take()
    pool.hold(number)
    pool.release(number)
    assert not pool.is_free(number)
    pool.release(number)
    assert pool.is_free(number)


def test_what_is_forgotten_is_handed_out_first() -> None:
    pool = NamedPool(range(3))
    of = remembered(pool, b"a", b"b", b"c")
    pool.hold(of[b"c"])
    for name in (b"b", b"c", b"unknown"):
        pool.forget(name)
    assert pool.find(b"c") is pool.find(b"b") is None
    assert pool.take() == of[b"b"]
    pool.check([of[b"c"], of[b"b"]])


def test_the_nameless_are_handed_out_first_and_counted() -> None:
    pool = NamedPool(range(3))
    nameless, named = pool.take(), pool.take()
    pool.name(named, b"a")
    for number in (nameless, named):
        pool.release(number)
    assert pool.has_nameless(2)
    assert not pool.has_nameless(3)
    assert not pool.has_nameless(4)
    assert named not in (pool.take(), pool.take())


def test_the_first_number_of_a_name_keeps_it() -> None:
    pool = NamedPool(range(2))
    first, second = pool.take(), pool.take()
    for number in (first, second):
        pool.name(number, b"a")
        pool.release(number)
    assert pool.find(b"a") == first
    assert pool.take() == second
