"""Forms of texts of a fake model, and what says when it is told to which tokens may come next."""

import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from loramux_server.forms.bits import bits_of
from loramux_server.forms.form import Form, FormKind
from loramux_server.forms.results import DraftMasks, Next
from tests.support.fake import EOS, VOCAB

FORM = Form(FormKind.REGEX, "two of some tokens")
STEPS = (range(40, 44), range(50, 53), range(EOS, EOS + 1))
"""What may come first, second and third in a text."""


def bits(tokens: Collection[int]) -> bytes:
    return bits_of(tokens).to_bytes(VOCAB // 8, "little")


class FakeForms:
    """Follows texts whose form is a list of what may come at each place."""

    def __init__(
        self, *, prompt: bool = True, supports_drafts: bool = True,
        steps: Mapping[Form, Sequence[Collection[int]]] = MappingProxyType({FORM: STEPS}),
    ) -> None:  # fmt: skip
        self.prompt = prompt
        """Whether it answers at once."""
        self.supports_drafts = supports_drafts
        """Whether it says at once what may come behind a draft."""
        self.steps = steps
        """What may come at each place of a text of each form."""
        self.forms: dict[int, Form] = {}
        self.forced: dict[int, list[int]] = {}
        """Length of a text -> what is said that must come then."""
        self.answers_who_waits = False
        self.live: dict[int, list[int]] = {}
        self.due: list[int] = []
        self.found: list[Next | DraftMasks] = []
        self.seen: list[tuple[int, list[int]]] = []
        """The drafts that it was told of."""
        self.failing: dict[int, int] = {}
        """Key -> the length from which on nothing may follow."""
        self.waits = 0

    @property
    def has_found(self) -> bool:
        return bool(self.found)

    def begin(self, key: int, form: Form, tenant: str) -> None:
        self.live[key], self.forms[key] = [], form
        self._ask(key)

    def advance(self, chosen: Sequence[tuple[int, Sequence[int]]]) -> None:
        for key, tokens in chosen:
            for token in tokens:
                assert token in self._steps(key)[len(self.live[key])]
                self.live[key].append(token)
            self._ask(key)

    def mask_drafts(self, drafts: Sequence[tuple[int, Sequence[int]]]) -> None:
        for key, draft in drafts:
            self.seen.append((key, list(draft)))
            here, masks = len(self.live[key]), list[bytes]()
            for step, token in enumerate(draft, here):
                is_end = token == EOS or step + 1 >= self.failing.get(key, math.inf)
                if is_end or token not in self._steps(key)[step]:
                    break
                masks.append(bits(self._steps(key)[step + 1]))
            if self.supports_drafts:
                self.found.append(DraftMasks(key, masks))

    def end(self, key: int) -> None:
        self.live.pop(key)

    def take(
        self, wanted: Collection[int] = (), seconds: float = 0.0, drafted: Collection[int] = ()
    ) -> list[Next | DraftMasks]:
        reported = {found.key for found in self.found if isinstance(found, DraftMasks)}
        self.waits += bool(wanted) or not reported.issuperset(drafted)
        if wanted and self.answers_who_waits:
            self.answer()
        found, self.found = self.found, []
        return found

    def answer(self) -> None:
        """Say what was asked for."""
        for key in self.due:
            if key not in self.live:
                continue
            length = len(self.live[key])
            if length >= self.failing.get(key, math.inf):
                reason = "STRUCTURED_OUTPUT_FAILED" if length else "INVALID_FIELD"
                self.found.append(Next(key, None, reason, "a limit"))
            else:
                found = Next(
                    key, bits(self._steps(key)[length]), seconds=None if length else 0.5,
                    forced=self.forced.get(length, ()), supports_drafts=True,
                )  # fmt: skip
                self.found.append(found)
        self.due = []

    def _steps(self, key: int) -> Sequence[Collection[int]]:
        return self.steps[self.forms[key]]

    def _ask(self, key: int) -> None:
        self.due.append(key)
        if self.prompt:
            self.answer()
