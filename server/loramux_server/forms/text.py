"""A constrained text, as the engine has reported it, and how fast its answers come."""

from dataclasses import dataclass, field

from loramux_server.forms.form import Form
from loramux_server.forms.messages import Allowed, MaskedDraft
from loramux_server.forms.text_queues import Pace

SLOW_SECONDS = 0.005
"""Processor time of an answer above which a text counts as slow."""
LONG_SECONDS = 0.02
"""Processor time of an answer about a draft above which the text gets no more drafts."""


@dataclass(slots=True)
class Text:
    """A constrained text."""

    form: Form
    tenant: str
    tokens: list[int] = field(default_factory=list)
    num_sent: int = 0
    """How many of them the current process has been sent."""
    pace: Pace = Pace.NEW
    used: float = 0.0
    """Processor seconds used; excludes drafts and replays in a new process."""
    may_draft: bool = True
    """Whether looking at its drafts never took too long."""

    @property
    def supports_drafts(self) -> bool:
        """Whether drafts are worth trying: looking at them is fast."""
        return self.may_draft and self.pace is Pace.QUICK

    def answered(self, answer: Allowed, *, counts: bool) -> None:
        """Record the cost of an answer; `counts` is False for a replay."""
        if counts:
            self.used += answer.cpu_seconds
        self.pace = Pace.SLOW if answer.cpu_seconds > SLOW_SECONDS else Pace.QUICK
        self.num_sent = len(self.tokens)

    def draft_answered(self, answer: MaskedDraft) -> None:
        """Record the cost of an answer about a draft."""
        self.may_draft = answer.bits is not None and answer.cpu_seconds <= LONG_SECONDS
