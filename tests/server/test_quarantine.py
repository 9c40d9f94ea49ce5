"""What is refused after deaths of the engine and logits that are not finite."""

from typing import Any

import pytest
from msgspec.structs import replace

from loramux.errors import FailedPreconditionError
from loramux_server.engine_link.quarantine import MAX_ENTRIES, Quarantine, dump, key_of, load
from loramux_server.wire.adapter_source import AdapterSource, Part
from loramux_server.wire.ask import Ask
from loramux_server.wire.sampling import Sampling

A, B = "sha256:a", "sha256:b"


def work(token: int = 1, digest: str | None = None, **sampling: Any) -> Ask:
    adapter = AdapterSource(digest, "", 8, 100) if digest else None
    return Ask([token, 2], adapter, Sampling(**{"max_tokens": 4, "seed": 0, **sampling}))


def is_refused(quarantine: Quarantine, ask: Ask) -> str | None:
    try:
        quarantine.check(ask)
    except FailedPreconditionError as error:
        return error.reason
    return None


@pytest.fixture
def quarantine() -> Quarantine:
    return Quarantine(max_deaths=2)


def test_a_request_present_in_two_deaths_in_a_row_is_refused(quarantine: Quarantine) -> None:
    quarantine.engine_died([work(1), work(2)])
    assert is_refused(quarantine, work(1)) is None
    quarantine.engine_died([work(1, seed=9), work(3)])  # who calls again may have another seed
    assert is_refused(quarantine, work(1, seed=5)) == "REQUEST_QUARANTINED"
    assert [is_refused(quarantine, work(token)) for token in (2, 3)] == [None, None]


def test_an_adapter_present_in_two_deaths_in_a_row_is_refused(quarantine: Quarantine) -> None:
    quarantine.engine_died([work(1, A), work(2, B)])
    quarantine.engine_died([work(3, A), work(4)])
    assert is_refused(quarantine, work(9, A)) == "ADAPTER_QUARANTINED"
    assert is_refused(quarantine, work(9, B)) is None
    assert is_refused(quarantine, work(9)) is None  # the base is nobody's adapter


def test_what_is_refused_is_refused_in_a_mix_too(quarantine: Quarantine) -> None:
    for _ in range(2):
        quarantine.engine_died([work(1, A)])
    mix = AdapterSource("sha256:mix", "", 8, 100, parts=(Part(B, "", 0.5), Part(A, "", 0.5)))
    ask = Ask([1], mix, Sampling(max_tokens=4, seed=0))
    assert is_refused(quarantine, ask) == "ADAPTER_QUARANTINED"
    other = replace(mix, parts=mix.parts[:1])
    assert is_refused(quarantine, replace(ask, adapter=other)) is None


@pytest.mark.parametrize("between", ["another death", "it ended well"])
def test_deaths_that_are_not_in_a_row_do_not_count(quarantine: Quarantine, between: str) -> None:
    quarantine.engine_died([work(1, A)])
    if between == "another death":
        quarantine.engine_died([])
    else:
        quarantine.ended_well(work(1, A))
    quarantine.engine_died([work(1, A)])
    assert is_refused(quarantine, work(1, A)) is None


def test_what_differs_is_another_request(quarantine: Quarantine) -> None:
    for _ in range(2):
        quarantine.engine_died([work(1)])
    assert is_refused(quarantine, work(1)) == "REQUEST_QUARANTINED"
    for other in (work(2), work(1, A), work(1, max_tokens=5)):
        assert is_refused(quarantine, other) is None


def test_an_adapter_whose_logits_overflow_three_times_is_refused(quarantine: Quarantine) -> None:
    quarantine.was_not_finite(A)
    quarantine.was_not_finite(A)
    quarantine.ended_well(work(1, A))
    for _ in range(3):
        assert is_refused(quarantine, work(1, A)) is None
        quarantine.was_not_finite(A)
    assert is_refused(quarantine, work(1, A)) == "ADAPTER_QUARANTINED"
    assert is_refused(quarantine, work(1, B)) is None


def test_what_is_cleared_runs_and_counts_anew(quarantine: Quarantine) -> None:
    for _ in range(2):
        quarantine.engine_died([work(1, A)])
    assert quarantine.clear(A)
    assert not quarantine.clear(A)
    assert quarantine.clear(key_of(work(1, A)))
    assert is_refused(quarantine, work(1, A)) is None
    quarantine.engine_died([work(1, A)])
    assert is_refused(quarantine, work(1, A)) is None


def test_deaths_count_only_if_they_are_to(quarantine: Quarantine) -> None:
    careless = Quarantine(max_deaths=0)
    for _ in range(5):
        careless.engine_died([work(1, A)])
    assert careless.entries == []


def test_what_is_refused_survives_a_restart(quarantine: Quarantine) -> None:
    reported: list[int] = []
    quarantine.on_refused = lambda entry: reported.append(quarantine.entries.index(entry))
    for _ in range(2):
        quarantine.engine_died([work(1, A)])
    assert reported == [0, 1]
    other = Quarantine(max_deaths=2)
    other.restore(load(dump(quarantine.entries)))
    assert other.entries == quarantine.entries
    assert is_refused(other, work(1, A)) == "ADAPTER_QUARANTINED"


def test_no_more_is_kept_than_there_is_room_for(quarantine: Quarantine) -> None:
    for number in range(MAX_ENTRIES + 5):
        for _ in range(3):
            quarantine.was_not_finite(f"sha256:{number}")
    assert len(quarantine.entries) == MAX_ENTRIES
    assert quarantine.entries[0].key == "sha256:5"
