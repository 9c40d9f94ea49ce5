"""Detection of stop strings in streamed text."""

from collections.abc import Sequence


class StopStrings:
    """Holds back text that may still become part of a stop string."""

    def __init__(self, stops: Sequence[str], *, include: bool) -> None:
        """Look for `stops`; the one that is found stays in the text if `include`."""
        self._stops = [stop for stop in stops if stop]
        self._include = include
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Return the text that is safe to send now, and the stop string if one is complete."""
        if not self._stops:
            return text, None
        held = self._held + text
        # The match that ends first; of several that end there, the one that starts first.
        found = [
            (position + len(stop), position, stop)
            for stop in self._stops
            if (position := held.find(stop)) >= 0
        ]
        if found:
            end, begin, stop = min(found)
            self._held = ""
            return held[: end if self._include else begin], stop
        keep = max(overlap(stop, held) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], None

    def flush(self) -> str:
        """Return the text still held back, at the end of the completion."""
        held, self._held = self._held, ""
        return held


def overlap(stop: str, text: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
