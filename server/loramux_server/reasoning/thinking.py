"""Reasoning in the completions of one request."""

from dataclasses import dataclass

import msgspec

from loramux_server.forms.form import Form, FormKind
from loramux_server.reasoning.channel_reader import ChannelReader
from loramux_server.reasoning.channels import ChannelSyntax, OpenMessage
from loramux_server.reasoning.form import message, thought
from loramux_server.reasoning.reader import ReasoningReader
from loramux_server.reasoning.syntax import ReasoningSyntax


@dataclass(frozen=True, slots=True)
class Thinking:
    """How reasoning is marked, and whether the prompt has opened it."""

    syntax: ReasoningSyntax | ChannelSyntax
    prompt: str
    """The end of the prompt, which may have opened a reasoning block."""
    has_own_tokens: bool = False
    """Whether it is marked by tokens that only the adapter has, which no grammar can name."""

    def reader(self) -> ReasoningReader | ChannelReader:
        """Return a reader that separates reasoning from the answer of one completion."""
        if isinstance(self.syntax, ChannelSyntax):
            return ChannelReader(self.syntax, self.syntax.open_message(self.prompt))
        return ReasoningReader(self.syntax, is_open=self.syntax.is_open(self.prompt))

    def before(self, form: Form) -> Form:
        """Return `form` with rules that allow reasoning before the answer."""
        if not isinstance(self.syntax, ChannelSyntax):
            before = thought(self.syntax, is_open=self.syntax.is_open(self.prompt))
        elif (open_message := self.syntax.open_message(self.prompt)) is OpenMessage.ANSWER:
            return form
        else:
            before = message(
                self.syntax,
                is_open=open_message is OpenMessage.THOUGHT,
                is_addressed=form.kind is FormKind.TOOL_CALLS,
            )
        return msgspec.structs.replace(form, before=before)
