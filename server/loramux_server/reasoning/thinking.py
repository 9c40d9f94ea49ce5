"""How a model thinks in the answer to one request."""

from dataclasses import dataclass

import msgspec

from loramux_server.forms.form import Form
from loramux_server.reasoning.form import thought
from loramux_server.reasoning.reader import ReasoningReader
from loramux_server.reasoning.syntax import ReasoningSyntax


@dataclass(frozen=True, slots=True)
class Thinking:
    """How what is thought is marked, and where it begins."""

    syntax: ReasoningSyntax
    is_open: bool
    """Whether the prompt has begun a thought."""
    has_own_tokens: bool = False
    """Whether tokens that only the adapter has mark it, which no form knows."""

    def reader(self) -> ReasoningReader:
        """Return what takes thoughts out of a completion."""
        return ReasoningReader(self.syntax, is_open=self.is_open)

    def before(self, form: Form) -> Form:
        """Return the form of what is thought, and of an answer that has `form` after it."""
        return msgspec.structs.replace(form, before=thought(self.syntax, is_open=self.is_open))
