"""Finds the tokens of a message's text among all tokens of a stream."""

from loramux.gateway.styles import Object, logprobs_of
from loramux.v1 import generation_pb2


class TextTokens:
    """Selects the log-probabilities that belong to text.

    A chunk has log-probabilities of all its tokens, including those of reasoning, tool calls,
    markers and the end of sequence. Its text may come from tokens of earlier chunks, since the
    server withholds text that may be the beginning of a call or a stop string.
    """

    def __init__(self) -> None:
        self._waiting: list[generation_pb2.PositionLogprobs] = []

    def of(self, delta: generation_pb2.Completion) -> list[Object]:
        """Return the entries for the text of `delta`, the next chunk."""
        self._waiting += delta.logprobs
        if not self._waiting:
            return []
        found: list[generation_pb2.PositionLogprobs] = []
        if delta.text:
            found, self._waiting = _split(delta.text.encode(), self._waiting)
        elif delta.reasoning:
            self._waiting = []
        if delta.tool_calls:
            self._waiting = []
        return [token | {"bytes": token["bytes"] or []} for token in logprobs_of(found)]


def _split(
    text: bytes, positions: list[generation_pb2.PositionLogprobs]
) -> tuple[list[generation_pb2.PositionLogprobs], list[generation_pb2.PositionLogprobs]]:
    """Return the positions within `text` and those after it; all as within if it is not found."""
    joined = b"".join(each.chosen.utf8 for each in positions)
    begin = len(joined) - len(text) if joined.endswith(text) else joined.find(text)
    if begin < 0:
        return positions, []
    found, behind, place = [], [], 0
    for each in positions:
        start, place = place, place + len(each.chosen.utf8)
        if start >= begin + len(text):
            behind.append(each)
        elif place > begin:
            found.append(each)
    return found, behind
