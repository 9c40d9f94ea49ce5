"""References: what is one, and what it stands for."""

import datetime
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux.errors import InvalidArgumentError, NotFoundError
from loramux_server.store.alias import Split
from loramux_server.store.names import Names
from loramux_server.store.record import UPLOAD, AdapterRecord
from loramux_server.store.reference import Reference, check_alias, parse_name, parse_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A", "adapter name 'A' is not valid"),
        ("A/a", "tenant name 'A' is not valid"),
        ("a:A", "tag 'A' is not valid"),
        ("x" * 64 + "/a", "tenant name 'x"),
    ],
)
def test_what_is_wrong_with_a_reference_is_called_what_it_is(text: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        parse_reference(text, "adapter")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", Reference("public", "a")),
        ("team/a", Reference("team", "a")),
        ("a:3", Reference("public", "a", "3")),
        ("a:stable", Reference("public", "a", "stable")),
        (f"a@{DIGEST}", Reference("public", "a", "", DIGEST)),
        (f"team/a.b-c_d:v1.2@{DIGEST}", Reference("team", "a.b-c_d", "v1.2", DIGEST)),
        ("public/a", Reference("public", "a")),
    ],
)
def test_a_reference_has_these_parts(text: str, expected: Reference) -> None:
    parsed = parse_reference(text, "adapter")
    assert parsed == expected
    assert str(parsed) == text.removeprefix("public/")


@pytest.mark.parametrize(
    "text",
    [
        "", "Upper", "a:", ":3", "/a", "a/", "a/b/c", "a:b:c", "a@", "@sha256:00", f"@{DIGEST}",
        "a@sha256:00", f"a@{DIGEST.upper()}", f"a@{DIGEST}0", f"a@{DIGEST}@{DIGEST}", "a:0",
        "a:03", "a:Stable", "a: 3", "../../a", "a\n", "a" * 64, f"{'a' * 64}/a", f"a:{'b' * 64}",
        "a:\u0663",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused_by_its_field(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^adapter: ") as caught:
        parse_reference(text, "adapter")
    assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", "adapter")


@pytest.mark.parametrize("text", ["a:3", f"a@{DIGEST}"])
def test_a_name_has_no_version(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="without tag"):
        parse_name(text, "header.name")


@pytest.mark.parametrize("alias", ["", "3", "latest", "Up", "a/b"])
def test_what_no_alias_may_be_called(alias: str) -> None:
    with pytest.raises(InvalidArgumentError, match="alias"):
        check_alias(alias, "alias")


@given(st.text(max_size=200))
def test_any_text_is_a_reference_or_is_refused(text: str) -> None:
    try:
        parsed = parse_reference(text, "adapter")
    except InvalidArgumentError:
        return
    assert parse_reference(str(parsed), "adapter") == parsed


def record(version: int, digest: str, name: str = "a", tenant: str = "public") -> AdapterRecord:
    return AdapterRecord(
        tenant=tenant, name=name, version=version, digest=digest, size_bytes=1, rank=1,
        num_bytes=1, item_bytes=4, edit_bytes=0, virtual_tokens=0, has_cache=False, task="",
        method="lora", invocation=(), target_modules=(), base_model="", source=UPLOAD,
        created_at=datetime.datetime.now(datetime.UTC),
    )  # fmt: skip


OTHER = "sha256:" + "f" * 64


@pytest.fixture
def names() -> Names:
    versions = [record(1, OTHER), record(2, DIGEST), record(4, OTHER), record(1, DIGEST, "b", "t")]
    splits = [(("public", "a"), "stable", Split.of({2: 1}))]
    names = Names()
    names.read(versions, {("public", "a"): 5}, splits)
    return names


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("a", 4), ("a:latest", 4), ("a:1", 1), ("a:stable", 2), (f"a@{OTHER}", 4),
        (f"a:1@{OTHER}", 1), (f"a:stable@{DIGEST}", 2), ("t/b", 1),
    ],
)  # fmt: skip
def test_a_reference_stands_for_one_version(names: Names, text: str, version: int) -> None:
    assert names.find(parse_reference(text, "name"), field="name").version == version


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("b", "'b' is not registered"), ("t/a", "'t/a' is not registered"),
        ("a:3", "no version 3; the newest is 4"), ("a:canary", "it has stable"),
        (f"a:1@{DIGEST}", "a:1 has sha256:ffff"), (f"t/b@{OTHER}", "has this digest"),
    ],
)  # fmt: skip
def test_what_stands_for_nothing_says_what_is_missing(names: Names, text: str, says: str) -> None:
    with pytest.raises(NotFoundError, match=says) as caught:
        names.find(parse_reference(text, "name"), field="name")
    assert (caught.value.reason, caught.value.field) == ("ADAPTER_NOT_FOUND", "name")


def test_numbers_go_on_behind_the_last_that_was_given(names: Names) -> None:
    assert names.next_version(("public", "a")) == 6
    assert names.next_version(("t", "b")) == 2


def test_a_split_gives_each_version_its_share_and_each_key_always_the_same() -> None:
    split = Split.of({3: 95, 4: 5})
    keys = [f"user-{number}" for number in range(20_000)]
    chosen = [split.choose(key) for key in keys]
    assert chosen == [split.choose(key) for key in keys]
    # Five standard deviations of a binomial with p = 0.05 are 154.
    assert abs(Counter(chosen)[4] - 1000) < 154


def test_a_canary_that_grows_keeps_whom_it_has() -> None:
    keys = [f"user-{number}" for number in range(5000)]
    before = {key for key in keys if Split.of({3: 95, 4: 5}).choose(key) == 4}
    after = {key for key in keys if Split.of({3: 80, 4: 20}).choose(key) == 4}
    assert before < after


def test_a_split_without_a_key_is_its_heaviest_version(names: Names) -> None:
    names.set_alias(("public", "a"), "canary", Split.of({1: 5, 2: 95, 4: 95}))
    assert names.find(parse_reference("a:canary", "name"), field="name").version == 4


def test_a_key_is_not_the_first_everywhere(names: Names) -> None:
    for alias in ("one", "two"):
        names.set_alias(("public", "a"), alias, Split.of({1: 50, 2: 50}))
    chosen = [
        [
            names.find(parse_reference(f"a:{alias}", ""), field="", key=str(key)).version
            for key in range(100)
        ]
        for alias in ("one", "two")
    ]
    assert chosen[0] != chosen[1]


@pytest.mark.parametrize(
    "weights", [{1: 0}, {1: -1}, {1: 10_001, 2: 1}, dict.fromkeys(range(17), 1)]
)
def test_weights_out_of_range_are_refused(weights: dict[int, int]) -> None:
    with pytest.raises(ValueError, match=r"weight|versions"):
        Split.of(weights)
