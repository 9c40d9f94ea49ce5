"""The worker process: `python -m loramux_server.forms.worker FD`.

Forms are untrusted input, and can make the library that compiles them overflow its stack or exhaust
memory. So this runs in a sandboxed process: it can open no file, socket or process, the system
limits its memory and the processor time of each answer, and the engine can start another.
"""

import itertools
import time
from collections import OrderedDict
from dataclasses import dataclass

from llguidance import LLMatcher, LLTokenizer

from loramux_server.confinement.serve import Work, address_space, serve, silence
from loramux_server.forms.bits import bits_of, has_bit
from loramux_server.forms.form import Form, FormKind
from loramux_server.forms.grammar import LIMITS, added_tokens, error_line, grammar_of, tokenizer_of
from loramux_server.forms.messages import (
    Allowed,
    Begin,
    Broken,
    End,
    MaskDraft,
    MaskedDraft,
    Prepared,
    Setup,
    ToWorker,
    decode_setup,
    decode_to_worker,
    encode,
)

KEPT = 16
"""Compiled forms in the LRU cache."""
MOST_FORCED = 64
"""Most forced tokens in an answer."""
_FORCED_SECONDS = 0.001
"""Processor time of an answer beyond which forced tokens are not computed."""
_DRAFT_SECONDS = 0.01
"""Processor time after which computing masks for a draft stops."""


class UnusableFormError(Exception):
    """A form cannot be compiled; the message is for callers."""


@dataclass(slots=True, eq=False)
class _Compiled:
    """A compiled form. State computed for one of its texts is shared by all of them."""

    matcher: LLMatcher
    num_texts: int = 0


@dataclass(slots=True)
class _Text:
    form: Form
    compiled: _Compiled
    matcher: LLMatcher
    tokens: list[int]
    bits: bytes = b""
    """Mask of the tokens that may come next."""
    is_alone: bool = False
    """Whether `compiled` is used by this text only, and by no draft."""


class TextFollower:
    """Tracks the parser state of each text."""

    def __init__(self, setup: Setup) -> None:
        """Read the tokenizer; a large one takes a second.

        Raises:
            ValueError: The library cannot use this tokenizer.
        """
        self._tokenizer = LLTokenizer(
            tokenizer_of(setup.tokenizer_json),
            n_vocab=setup.vocab_size,
            eos_token=setup.end_tokens,
        )
        self._ends = bits_of(setup.end_tokens)
        self._controls = bits_of(added_tokens(setup.tokenizer_json)) & ~self._ends
        """Added tokens other than the ends; a grammar can ask for them by id."""
        self._live: dict[int, _Text] = {}
        self._compiled: OrderedDict[Form, _Compiled] = OrderedDict()
        """LRU cache, the most recently used last."""

    def answer(self, message: ToWorker) -> Allowed | MaskedDraft | Broken | None:
        """Return which tokens may come next, or why none may; None if no answer is due."""
        if isinstance(message, End):
            self._live.pop(message.key, None)
            return None
        if isinstance(message, MaskDraft):
            return self._mask_draft(self._live[message.key], message.draft)
        begin, seconds = time.process_time(), None
        try:
            if isinstance(message, Begin):
                seconds = self._begin(message)
            bits = self._advance(message.key, message.tokens)
            is_quick = time.process_time() - begin < _FORCED_SECONDS
            forced = self._forced(self._live[message.key]) if is_quick else []
            return Allowed(bits, time.process_time() - begin, seconds, forced)
        except UnusableFormError as error:
            self._live.pop(message.key, None)
            return Broken(str(error))

    def _begin(self, message: Begin) -> float | None:
        """Start a text; return the seconds spent compiling its form, None if it was cached."""
        form, seconds = message.form, None
        if form not in self._compiled:
            begin = time.perf_counter()
            self._compiled[form] = self._compile(form)
            seconds = time.perf_counter() - begin
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(form)
        self._live[message.key] = _copied(form, self._compiled[form])
        return seconds

    def _advance(self, key: int, tokens: list[int]) -> bytes:
        text = self._live[key]
        text.tokens += tokens
        if text.matcher.consume_tokens(tokens):
            text.bits = self._allowed(text.form, text.matcher)
        if not text.matcher.is_error():
            return text.bits
        if text.compiled.num_texts == 1:
            raise UnusableFormError(error_line(text.matcher.get_error()))
        # Other texts may have used up the shared limits, so this one continues with its own copy.
        if self._compiled.get(text.form) is text.compiled:
            del self._compiled[text.form]
        self._live[key] = _copied(text.form, self._compile(text.form))
        self._live[key].is_alone = True
        return self._advance(key, text.tokens)

    def _mask_draft(self, text: _Text, draft: list[int]) -> MaskedDraft:
        begin, found, bits = time.process_time(), list[bytes](), text.bits
        if text.is_alone:
            return MaskedDraft(None, 0.0)
        # Like another text of the form, a draft may use up the shared limits.
        text.compiled.num_texts += 1
        matcher = text.matcher.deep_copy()
        for token in draft:
            is_late = time.process_time() - begin > _DRAFT_SECONDS
            if is_late or not has_bit(bits, token) or self._ends >> token & 1:
                break
            try:
                matcher.consume_token(token)
                bits = self._allowed(text.form, matcher)
            except UnusableFormError:
                break
            if matcher.is_error():
                break
            found.append(bits)
        return MaskedDraft(found, time.process_time() - begin)

    def _forced(self, text: _Text) -> list[int]:
        """Return the tokens of the only possible continuation, up to an end token.

        Other tokens may spell the same text.
        """
        tokens = text.matcher.deep_copy().compute_ff_tokens()[:MOST_FORCED]
        return list(itertools.takewhile(lambda token: not self._ends >> token & 1, tokens))

    def _allowed(self, form: Form, matcher: LLMatcher) -> bytes:
        bits = matcher.compute_bitmask()
        return self._without_controls(bits, matcher) if form.kind is FormKind.GRAMMAR else bits

    def _without_controls(self, bits: bytes, matcher: LLMatcher) -> bytes:
        """Return `bits` without control tokens; end tokens stay where the text may end.

        Raises:
            UnusableFormError: Nothing else is left.
        """
        allowed = int.from_bytes(bits, "little") & ~self._controls
        if allowed & self._ends and not matcher.is_accepting():
            allowed &= ~self._ends
        if not allowed and not matcher.is_error():
            raise UnusableFormError("only control tokens may follow, and these are never allowed")
        return allowed.to_bytes(len(bits), "little")

    def _compile(self, form: Form) -> _Compiled:
        try:
            grammar = grammar_of(form)
        except ValueError as error:
            raise UnusableFormError(error_line(str(error))) from None
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise UnusableFormError(error_line(matcher.get_error()))
        return _Compiled(matcher)


def _copied(form: Form, compiled: _Compiled) -> _Text:
    compiled.num_texts += 1
    return _Text(form, compiled, compiled.matcher.deep_copy(), [])


def prepare(message: bytes) -> Work | bytes:
    """Return the work of this process after `message`, a Setup, or the answer that refuses it."""
    setup = decode_setup(message)
    try:
        follower = TextFollower(setup)
    # A panic in the library is a BaseException.
    except BaseException as error:
        return encode(Prepared(error_line(str(error))))
    # Triggers lazy imports, which are impossible once sandboxed.
    follower.answer(Begin(0, Form(FormKind.JSON_OBJECT), []))
    follower.answer(End(0))
    silence()  # a panic message may contain user content

    def answer(message: bytes) -> bytes | None:
        found = follower.answer(decode_to_worker(message))
        return None if found is None else encode(found)

    return Work(
        encode(Prepared()),
        answer,
        who="a constraint",
        memory=address_space() + setup.memory,
        cpu_seconds=setup.cpu_seconds,
    )


if __name__ == "__main__":
    serve(prepare)
