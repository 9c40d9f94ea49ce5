"""Forms that nobody would ask for, followed for a while by random tokens."""

import itertools
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import strategies as st

from loramux_server.forms.form import Form, FormKind
from loramux_server.forms.forms import Forms
from loramux_server.forms.messages import Setup
from loramux_server.forms.results import Next
from tests.fuzz.target import Target
from tests.support.models import byte_tokenizer

NUM_TOKENS = 20
EOS = 2
PATIENCE = 60.0
"""Seconds for an answer, on the busiest of machines."""

ATOMS = [
    "a", "b", ".", r"\d", r"\w", r"[^x]", "é", "(?:ab)", r"\n", '"', "[a-z]", r"\p{L}", "^", "$",
    "/", "\n", "(?i)a", r"\x00", r"\u1234", r"\b", "(?=a)", "[z-a]", "",
]  # fmt: skip
REPEATS = ["*", "+", "?", "{2}", "{0,3}", "{50}", "{1000}", "{3,1}"]
NAMES = [
    "type", "items", "enum", "const", "anyOf", "allOf", "oneOf", "$ref", "$defs", "properties",
    "minLength", "maxLength", "pattern", "minimum", "maximum", "multipleOf", "required", "not",
    "additionalProperties", "prefixItems", "minItems", "maxItems", "format", "patternProperties",
    "x-guidance", "$id", "a",
]  # fmt: skip
VALUES = st.sampled_from([
    0, 1, -1, 1.5, 1e308, 10**30, "", "string", "integer", "object", "array", "number", None, True,
    False, "#", "#/$defs/a", "#/properties/a", "date-time", "a*", "(", "http://127.0.0.1:9/a",
])  # fmt: skip
PIECES = [
    "start", ":", "a", "B", '"x"', "/a*/", "|", "(", ")", "*", "+", "?", "{2}", "\n", "[lazy]", "~",
    "%import common.INT", '%json {"type":"object"}', "%ignore /\\s/", "<[3]>", "<s>", "->", "!",
    '"a".."z"', "[max_tokens=3]", "{0,1000000}", "%regex {}", "/", '"', "\na:", "\nB:",
]  # fmt: skip


def forms() -> st.SearchStrategy[Form]:
    """Forms that are nearly right."""
    patterns = st.recursive(
        st.sampled_from(ATOMS),
        lambda inner: st.one_of(
            st.tuples(inner, inner).map("".join),
            st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})"),
            st.tuples(inner, st.sampled_from(REPEATS)).map(lambda pair: f"({pair[0]}){pair[1]}"),
        ),
        max_leaves=12,
    )
    schemas = st.recursive(
        VALUES,
        lambda inner: (
            st.dictionaries(st.sampled_from(NAMES), inner, max_size=4) | st.lists(inner, max_size=3)
        ),
        max_leaves=15,
    ).filter(lambda value: isinstance(value, dict))
    grammars = st.lists(st.sampled_from(PIECES), max_size=16).map(" ".join)
    choices = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5).map(tuple)
    return st.one_of(
        patterns.map(lambda text: Form(FormKind.REGEX, text)),
        schemas.map(lambda value: Form(FormKind.JSON_SCHEMA, json.dumps(value))),
        grammars.map(lambda text: Form(FormKind.GRAMMAR, f"start: {text}")),
        choices.map(lambda texts: Form(FormKind.CHOICE, choices=texts)),
    )


@contextmanager
def following() -> Iterator[Forms]:
    """What follows forms, with a token for each byte."""
    tokenizer = byte_tokenizer().backend_tokenizer.to_str()
    found = Forms(Setup(tokenizer, 259, [EOS]), lambda: None)
    try:
        yield found
    finally:
        found.close()


def form_target(followed: Forms) -> Target:
    """Return what is asked for forms."""
    keys = itertools.count()

    def follow(form: Form) -> str:
        key, chosen = next(keys), random.Random(0)
        followed.begin(key, form)
        for _ in range(NUM_TOKENS):
            (found,) = followed.take([key], PATIENCE)
            assert isinstance(found, Next)
            if found.allowed is None:
                assert found.reason in ("INVALID_FIELD", "STRUCTURED_OUTPUT_FAILED"), found.reason
                assert found.why
                return found.reason
            bits = int.from_bytes(found.allowed, "little")
            tokens = [token for token in range(bits.bit_length()) if bits >> token & 1]
            assert tokens, "nothing may follow, and nobody says so"
            token = chosen.choice(tokens)
            if token == EOS:
                break
            followed.advance([(key, [token])])
        else:
            followed.take([key], PATIENCE)
        followed.end(key)
        return "followed"

    return Target("forms", forms(), follow)
