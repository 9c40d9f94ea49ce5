"""A few seconds of what `make fuzz` does for minutes."""

from tests.fuzz.__main__ import campaign


def test_no_input_comes_to_what_none_may_come_to() -> None:
    results = campaign(5.0, None, first_seed=0)
    assert [found for result in results for found in result.findings] == []
    assert all(result.seconds for result in results)
