"""The process that follows forms: `python -m loramux_server.forms.worker FD`.

Forms come from strangers, and the library that compiles them can be made to run out of its stack or
of memory. So it does that here, in a process that has nothing to lose: the kernel lets it open no
file, socket or process, memory and the processor time of each answer are limited by the system, and
the engine starts another.
"""

import itertools
import time
from collections import OrderedDict
from dataclasses import dataclass

from llguidance import LLMatcher, LLTokenizer

from loramux_server.confinement.serve import Work, address_space, serve, silence
from loramux_server.forms.bits import bits_of, has_bit
from loramux_server.forms.form import Form, FormKind
from loramux_server.forms.grammar import LIMITS, added_tokens, grammar_of, said, tokenizer_of
from loramux_server.forms.messages import (
    Allowed,
    Begin,
    Broken,
    End,
    Foresee,
    Foreseen,
    Prepared,
    Setup,
    ToWorker,
    decode_setup,
    decode_to_worker,
    encode,
)

KEPT = 16
"""Forms that stay compiled."""
MOST_FORCED = 64
"""Tokens of which it is told that nothing else can come."""
_FORCED_SECONDS = 0.001
"""Processor time of an answer beyond which it is not found out what is forced."""
_AHEAD_SECONDS = 0.01
"""Processor time after which no more is found out about a draft."""


class UnusableFormError(Exception):
    """A form cannot be compiled; the message is for callers."""


@dataclass(slots=True, eq=False)
class _Compiled:
    """A compiled form. What is found out about it in one text, all of its texts know."""

    matcher: LLMatcher
    num_texts: int = 0


@dataclass(slots=True)
class _Text:
    form: Form
    compiled: _Compiled
    matcher: LLMatcher
    tokens: list[int]
    bits: bytes = b""
    """What may come next."""
    is_alone: bool = False
    """Whether `compiled` has nothing that was found out for other texts, or drafts."""


class TextFollower:
    """Knows where in its form each text is."""

    def __init__(self, setup: Setup) -> None:
        """Read the tokenizer, which takes a second where it is large.

        Raises:
            ValueError: The library cannot make text of its tokens.
        """
        self._tokenizer = LLTokenizer(
            tokenizer_of(setup.tokenizer_json),
            n_vocab=setup.vocab_size,
            eos_token=setup.end_tokens,
        )
        self._ends = bits_of(setup.end_tokens)
        self._controls = bits_of(added_tokens(setup.tokenizer_json)) & ~self._ends
        """A grammar can ask for them by number."""
        self._live: dict[int, _Text] = {}
        self._compiled: OrderedDict[Form, _Compiled] = OrderedDict()
        """Those that were used last, the last one last."""

    def answer(self, message: ToWorker) -> Allowed | Foreseen | Broken | None:
        """Return which tokens may come next, or why none may; None if nobody asks."""
        if isinstance(message, End):
            self._live.pop(message.key, None)
            return None
        if isinstance(message, Foresee):
            return self._foresee(self._live[message.key], message.draft)
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
        """Return how long the form took to compile, if it had to be."""
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
            raise UnusableFormError(said(text.matcher.get_error()))
        # It may be at its limits because of other texts, so this one goes on with its own.
        if self._compiled.get(text.form) is text.compiled:
            del self._compiled[text.form]
        self._live[key] = _copied(text.form, self._compile(text.form))
        self._live[key].is_alone = True
        return self._advance(key, text.tokens)

    def _foresee(self, text: _Text, draft: list[int]) -> Foreseen:
        begin, found, bits = time.process_time(), list[bytes](), text.bits
        if text.is_alone:
            return Foreseen(None, 0.0)
        # As another text of the form a draft may take it to its limits.
        text.compiled.num_texts += 1
        matcher = text.matcher.deep_copy()
        for token in draft:
            is_late = time.process_time() - begin > _AHEAD_SECONDS
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
        return Foreseen(found, time.process_time() - begin)

    def _forced(self, text: _Text) -> list[int]:
        """Return the tokens that come next unless what they say is said in others."""
        tokens = text.matcher.deep_copy().compute_ff_tokens()[:MOST_FORCED]
        return list(itertools.takewhile(lambda token: not self._ends >> token & 1, tokens))

    def _allowed(self, form: Form, matcher: LLMatcher) -> bytes:
        bits = matcher.compute_bitmask()
        return self._without_controls(bits, matcher) if form.kind is FormKind.GRAMMAR else bits

    def _without_controls(self, bits: bytes, matcher: LLMatcher) -> bytes:
        """Return `bits` without control tokens, of which only the end counts where a text ends."""
        allowed = int.from_bytes(bits, "little") & ~self._controls
        if allowed & self._ends and not matcher.is_accepting():
            allowed &= ~self._ends
        if not allowed and not matcher.is_error():
            raise UnusableFormError("only control tokens may follow, which are no part of a form")
        return allowed.to_bytes(len(bits), "little")

    def _compile(self, form: Form) -> _Compiled:
        try:
            grammar = grammar_of(form)
        except ValueError as error:
            raise UnusableFormError(said(str(error))) from None
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise UnusableFormError(said(matcher.get_error()))
        return _Compiled(matcher)


def _copied(form: Form, compiled: _Compiled) -> _Text:
    compiled.num_texts += 1
    return _Text(form, compiled, compiled.matcher.deep_copy(), [])


def prepare(message: bytes) -> Work | bytes:
    """Return how to follow forms after `message`, a Setup, or why none can be."""
    setup = decode_setup(message)
    try:
        follower = TextFollower(setup)
    # A panic in the library is a BaseException.
    except BaseException as error:
        return encode(Prepared(said(str(error))))
    # What is imported when it is first needed is imported now.
    follower.answer(Begin(0, Form(FormKind.JSON_OBJECT), []))
    follower.answer(End(0))
    silence()  # a panic tells what it was about

    def answer(message: bytes) -> bytes | None:
        found = follower.answer(decode_to_worker(message))
        return None if found is None else encode(found)

    return Work(
        encode(Prepared()),
        answer,
        who="a form",
        memory=address_space() + setup.memory,
        cpu_seconds=setup.cpu_seconds,
    )


if __name__ == "__main__":
    serve(prepare)
