"""Texts that have a form, followed by the process that does."""

import itertools
import json
import random
from collections.abc import Collection, Sequence
from typing import Any, cast

import psutil
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from loramux_server.forms.form import Form, FormKind
from loramux_server.forms.forms import Forms
from loramux_server.forms.messages import Setup
from loramux_server.forms.results import DraftMasks, Next
from tests.support.models import byte_tokenizer

WAIT = 60.0


def setup_of(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> Setup:
    end = tokenizer.eos_token_id
    text = tokenizer.backend_tokenizer.to_str()
    return Setup(text, len(tokenizer), [2 if end is None else end], **changes)


class Texts:
    """Texts that are followed, one token after the other."""

    def __init__(self, setup: Setup) -> None:
        self.num_woken = 0
        self.forms = Forms(setup, self._wake)
        self.end = setup.end_tokens[0]
        self._num = 0

    def _wake(self) -> None:
        self.num_woken += 1

    def begin(self, form: Form) -> tuple[int, Next]:
        self._num += 1
        self.forms.begin(self._num, form)
        return self._num, self.found(self._num)

    def found(self, key: int) -> Next:
        (found,) = self.each([key])
        assert found.key == key
        return found

    def each(self, keys: Collection[int]) -> list[Next]:
        """Return what is found out when it is known of each of `keys` what may come next."""
        found = self.forms.take(keys, WAIT)
        assert all(isinstance(one, Next) for one in found)
        return cast("list[Next]", found)

    def advance(self, key: int, *tokens: int) -> Next:
        """Return what may come behind more tokens of a text."""
        self.forms.advance([(key, tokens)])
        return self.found(key)

    def draft_masks(self, key: int, draft: Sequence[int]) -> Sequence[bytes]:
        """Return what may come behind a draft."""
        self.forms.mask_drafts([(key, draft)])
        (found,) = self.forms.take(seconds=WAIT, drafted=[key])
        assert isinstance(found, DraftMasks) and found.key == key
        return found.masks

    def write(self, form: Form, seed: int, most: int = 300) -> list[int] | None:
        """Return a random text of `form`, None if it became longer than `most` tokens."""
        chosen = random.Random(seed)
        key, found = self.begin(form)
        tokens: list[int] = []
        while len(tokens) < most:
            token = chosen.choice(allowed(found))
            if token == self.end:
                self.forms.end(key)
                return tokens
            tokens.append(token)
            found = self.advance(key, token)
        return None


def allowed(found: Next) -> list[int]:
    assert found.allowed is not None, found.why
    return [
        number * 8 + bit
        for number, byte in enumerate(found.allowed)
        for bit in range(8)
        if byte >> bit & 1
    ]


def worker() -> psutil.Process:
    """Return the one that was started last."""
    # Not those of servers that other tests keep.
    children = psutil.Process().children()
    found = [child for child in children if "forms.worker" in " ".join(child.cmdline())]
    return max(found, key=psutil.Process.create_time)


def choice(*choices: str) -> Form:
    return Form(FormKind.CHOICE, choices=choices)


def schema(content: object) -> Form:
    return Form(FormKind.JSON_SCHEMA, json.dumps(content))


def grammar(*lines: str) -> Form:
    return Form(FormKind.GRAMMAR, "\n".join(lines))


def number_tokenizer() -> PreTrainedTokenizerFast:
    """Return one with a token for each byte, and for each two and three digits."""
    content = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    model, digits = content["model"], "0123456789"
    for length in (1, 2):
        for first in itertools.product(digits, repeat=length):
            for last in digits:
                model["vocab"]["".join(first) + last] = len(model["vocab"])
                model["merges"].append(["".join(first), last])
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token="</s>"
    )
