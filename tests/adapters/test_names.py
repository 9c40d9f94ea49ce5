"""What an adapter may be called. The ids are those of the corpus of bad inputs: B15 to B17."""

import pytest

from loramux_adapters import PackageError, check_adapter_name


@pytest.mark.parametrize(
    "name",
    ["a", "0", "a-b", "model-1", "con", "a.b", "a_b", "sql-v1.2_final", "a" * 63, "0" * 63],
)
def test_b17_a_name_of_letters_and_digits_with_marks_between_is_accepted(name: str) -> None:
    assert check_adapter_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        # B15
        "..", "../x", "a/../b", "a/b", r"a\b", "/a", ".", "", " ", "a b", " a", "a ", "\t",
        "%2e%2e",
        # B16
        "a\0", "a\n", "\na", "\U0001f600", "e\u0301", "A", "aB", "a" * 64, "-a", "a-", ".a", "a.",
        "_a", "a_", "a..b", "a._b", "a.-b", "-", "\u0430", "\uff41", "\u0661",
        "a\u202eb", "a\ud800",
    ],
)  # fmt: skip
def test_any_other_name_is_refused_and_shown_escaped(name: str) -> None:
    with pytest.raises(PackageError) as caught:
        check_adapter_name(name)
    assert caught.value.reason == "INVALID_FIELD"
    assert ascii(name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "like"), [("MyAdapter", "myadapter"), ("My Model/v2!", "my-model-v2"), ("\u0430", "")]
)
def test_a_valid_name_like_it_is_suggested(name: str, like: str) -> None:
    with pytest.raises(PackageError) as caught:
        check_adapter_name(name)
    end = f", such as {like!r}" if like else "between them"
    assert str(caught.value).endswith(end)


def test_a_name_of_any_length_is_refused_in_a_short_message() -> None:
    with pytest.raises(PackageError, match="has 1000000 characters; the limit is 63") as caught:
        check_adapter_name("a" * 10**6)
    assert len(str(caught.value)) < 200


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", ["a-", "a--", "a.", "a_", "-", "a"])
def test_a_long_name_is_refused_at_once(piece: str) -> None:
    # A pattern that can match a text in several ways would take minutes to refuse this.
    with pytest.raises(PackageError):
        check_adapter_name((piece * 63)[:62] + "!")
