"""Rules of a grammar, as they are added."""

from loramux_server.forms.form import MAX_BYTES


class LargeRulesError(Exception):
    """Rules are longer than a form may be."""


class Rules:
    """Rules of a form, which are never longer than one may be."""

    def __init__(self) -> None:
        """Begin without any."""
        self._rules: list[str] = []
        self._num_bytes = -1  # before the first one there is no newline

    def add(self, *rules: str) -> None:
        """Add `rules`.

        Raises:
            LargeRulesError: All have more than MAX_BYTES bytes.
        """
        for rule in rules:
            self._num_bytes += 1 + len(rule.encode())
            if self._num_bytes > MAX_BYTES:
                raise LargeRulesError
            self._rules.append(rule)

    @property
    def text(self) -> str:
        """All of them, one a line."""
        return "\n".join(self._rules)
