"""A stop string is found wherever the text is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.text.stop_strings import StopStrings


def searched(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """What a search in the whole text finds: the stop string that ends first, or begins first."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if stop and text[:end].endswith(stop):
                return text[: end if include else end - len(stop)], stop
    return text, None


def streamed(pieces: list[str], stops: list[str], include: bool) -> tuple[str, str | None]:
    finder = StopStrings(stops, include=include)
    shown = ""
    for piece in pieces:
        safe, stop = finder.push(piece)
        shown += safe
        if stop is not None:
            return shown, stop
    return shown + finder.flush(), None


# Few letters, so that stop strings come, overlap and almost come.
pieces = st.lists(st.text("ab\u20ac", max_size=6), max_size=12)
stops = st.lists(st.text("ab\u20ac", max_size=5), max_size=4)


@given(pieces=pieces, stops=stops, include=st.booleans())
def test_pieces_give_what_the_whole_text_gives(
    pieces: list[str], stops: list[str], include: bool
) -> None:
    assert streamed(pieces, stops, include) == searched("".join(pieces), stops, include)


@given(pieces=pieces, stops=stops)
def test_no_more_is_held_back_than_could_become_a_stop_string(
    pieces: list[str], stops: list[str]
) -> None:
    finder = StopStrings(stops, include=False)
    text = shown = ""
    for piece in pieces:
        safe, stop = finder.push(piece)
        if stop is not None:
            return
        text += piece
        shown += safe
        assert text.startswith(shown)
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


@pytest.mark.parametrize(
    ("stops", "text", "shown", "found"),
    [
        ([], "anything", "anything", None),
        ([""], "anything", "anything", None),
        (["b", "ab"], "aab", "a", "ab"),
        (["abc", "b"], "xabc", "xa", "b"),
        (["aab"], "aaab", "a", "aab"),
        (["\n\n"], "a\nb\n\nc", "a\nb", "\n\n"),
    ],
)
def test_of_several_stop_strings_the_first_to_be_whole_wins(
    stops: list[str], text: str, shown: str, found: str | None
) -> None:
    assert streamed(list(text), stops, include=False) == (shown, found)
    assert streamed([text], stops, include=False) == (shown, found)
