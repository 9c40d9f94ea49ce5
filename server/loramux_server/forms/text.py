"""A text that has a form, as far as the engine has told of it, and how quickly it is followed."""

from dataclasses import dataclass, field

from loramux_server.forms.form import Form
from loramux_server.forms.messages import Allowed, Foreseen
from loramux_server.forms.turns import Pace

SLOW_SECONDS = 0.005
"""Processor time of an answer from which on a text is slow."""
LONG_SECONDS = 0.02
"""That of one about a draft, from which on none is asked for again."""


@dataclass(slots=True)
class Text:
    """A text."""

    form: Form
    tenant: str
    tokens: list[int] = field(default_factory=list)
    num_told: int = 0
    """Of them, how many the process that follows it was told."""
    pace: Pace = Pace.NEW
    used: float = 0.0
    """Seconds of processor time; what another process does again does not count, nor do drafts."""
    may_draft: bool = True
    """Whether it never took too much to find out what may come behind a draft."""

    @property
    def foresees(self) -> bool:
        """Whether it is found out soon what may come behind a draft."""
        return self.may_draft and self.pace is Pace.QUICK

    def answered(self, answer: Allowed, *, counts: bool) -> None:
        """Take in what an answer took; `counts` says whether for the first time."""
        if counts:
            self.used += answer.cpu_seconds
        self.pace = Pace.SLOW if answer.cpu_seconds > SLOW_SECONDS else Pace.QUICK
        self.num_told = len(self.tokens)

    def foreseen(self, answer: Foreseen) -> None:
        """Take in what it took to find out what may come behind a draft."""
        self.may_draft = answer.bits is not None and answer.cpu_seconds <= LONG_SECONDS
