"""Clients of an earlier build go on working: the contract is added to, and nothing else."""

from tests.protos.contract import CONTRACT, contract


def test_nothing_of_the_contract_is_taken_away_or_changed() -> None:
    known, found = CONTRACT.read_text(encoding="utf-8").splitlines(), contract()
    assert [line for line in known if line not in found] == [], "clients depend on these"
    added = [line for line in found if line not in known]
    assert added == [], "new: write them down with `python -m tests.protos.contract`"
