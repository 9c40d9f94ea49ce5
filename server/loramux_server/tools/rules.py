"""Collecting the rules of a grammar within a size limit."""

from loramux_server.forms.form import MAX_BYTES


class LargeRulesError(Exception):
    """Rules are longer than MAX_BYTES."""


class Rules:
    """The rules of a grammar, of at most MAX_BYTES."""

    def __init__(self) -> None:
        """Begin without any."""
        self._rules: list[str] = []
        self._num_bytes = -1  # no newline before the first rule

    def add(self, *rules: str) -> None:
        """Add `rules`.

        Raises:
            LargeRulesError: All rules together have more than MAX_BYTES bytes.
        """
        for rule in rules:
            self._num_bytes += 1 + len(rule.encode())
            if self._num_bytes > MAX_BYTES:
                raise LargeRulesError
            self._rules.append(rule)

    @property
    def text(self) -> str:
        """All rules, one per line."""
        return "\n".join(self._rules)
