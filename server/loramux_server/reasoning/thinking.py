"""How a model thinks in the answer to one request."""

from dataclasses import dataclass

import msgspec

from loramux_server.forms.form import Form, FormKind
from loramux_server.reasoning.channel_reader import ChannelReader
from loramux_server.reasoning.channels import Begun, ChannelSyntax
from loramux_server.reasoning.form import message, thought
from loramux_server.reasoning.reader import ReasoningReader
from loramux_server.reasoning.syntax import ReasoningSyntax


@dataclass(frozen=True, slots=True)
class Thinking:
    """How what is thought is marked, and where it begins."""

    syntax: ReasoningSyntax | ChannelSyntax
    prompt: str
    """The end of the prompt, which may have begun a thought."""
    has_own_tokens: bool = False
    """Whether tokens that only the adapter has mark it, which no form knows."""

    def reader(self) -> ReasoningReader | ChannelReader:
        """Return what takes thoughts out of a completion."""
        if isinstance(self.syntax, ChannelSyntax):
            return ChannelReader(self.syntax, self.syntax.begun(self.prompt))
        return ReasoningReader(self.syntax, is_open=self.syntax.is_open(self.prompt))

    def before(self, form: Form) -> Form:
        """Return the form of what is thought, and of an answer that has `form` after it."""
        if not isinstance(self.syntax, ChannelSyntax):
            before = thought(self.syntax, is_open=self.syntax.is_open(self.prompt))
        elif (begun := self.syntax.begun(self.prompt)) is Begun.ANSWER:
            return form
        else:
            before = message(
                self.syntax,
                is_open=begun is Begun.THOUGHT,
                is_addressed=form.kind is FormKind.TOOL_CALLS,
            )
        return msgspec.structs.replace(form, before=before)
