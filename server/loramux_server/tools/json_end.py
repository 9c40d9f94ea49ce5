"""Finding the end of a JSON object in streamed text."""

MAX_DEPTH = 256


class JsonEnd:
    """Scans an object incrementally; each character is read once, however it is chunked."""

    def __init__(self, begin: int) -> None:
        """Scan the object that begins at `begin`."""
        self._at = begin
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    def find(self, text: str) -> int | None:
        """Return the offset at which the object ends; None if it is incomplete.

        Args:
            text: All text received; each call extends the text of the previous one.

        Raises:
            ValueError: It is nested too deeply.
        """
        for at in range(self._at, len(text)):
            char = text[at]
            if self._is_in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif char == "\\":
                    self._is_escaped = True
                elif char == '"':
                    self._is_in_string = False
            elif char == '"':
                self._is_in_string = True
            elif char in "{[":
                self._depth += 1
                if self._depth > MAX_DEPTH:
                    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
            elif char in "}]":
                self._depth -= 1
                if not self._depth:
                    return at + 1
        self._at = len(text)
        return None
