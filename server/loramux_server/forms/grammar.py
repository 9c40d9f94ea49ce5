"""Forms and tokenizers in llguidance's format, and its errors as shown to callers."""

import json
import re
import secrets
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from loramux_server.forms.form import Form, FormKind
from loramux_server.text.pieces.names import FIRST_EXTRA, MARKS, SPACE

LIMITS = LLParserLimits(
    initial_lexer_fuel=200_000,
    step_lexer_fuel=50_000,
    step_max_items=20_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
"""At most a fifth of the library's defaults: the worst token found took 0.09 s and 25 MiB with
these, 0.65 s and 200 MiB with the defaults."""
MAX_ERROR_LENGTH = 200
"""Maximum length of an error message, in characters."""

_SLASH = re.compile(r"\\.|/|\n", re.DOTALL)
"""What a regular expression between slashes has to escape, and what is escaped already."""
_SPACE = r"\n?[ \t]{0,32}"
"""White space between two JSON tokens. Bounded, or a model might never stop writing it."""


def grammar_of(form: Form) -> str:
    """Return the llguidance grammar of `form`, which may still fail to compile.

    A form of kind `grammar` has its own rules, so its `before` must be empty.

    Raises:
        ValueError: The form is invalid.
    """
    if form.kind is FormKind.TOOL_CALLS or form.before:
        return LLMatcher.grammar_from_lark(_rules(form))
    if form.kind is FormKind.JSON_SCHEMA:
        return _of_schema(form.text)
    if form.kind is FormKind.JSON_OBJECT:
        return _of_schema('{"type": "object"}')
    if form.kind is FormKind.REGEX:
        return LLMatcher.grammar_from_regex(form.text)
    if form.kind is FormKind.CHOICE:
        return LLMatcher.grammar_from_regex("|".join(map(escape_regex, form.choices)))
    return LLMatcher.grammar_from_lark(form.text)


def tokenizer_of(tokenizer_json: str) -> str:
    """Return the tokenizer in a form that llguidance takes: added tokens get unguessable names.

    Otherwise the library would take `</s>` in a form for the end token. Nor does it support tokens
    beyond the base model's vocabulary, characters that are dropped when tokens are decoded, or T5's
    decoder.
    """
    content: dict[str, Any] = json.loads(tokenizer_json)
    _leave_out(content)
    secret = secrets.token_hex(8)
    names = {token["content"]: f"\ue000{secret}:{token['id']}" for token in content["added_tokens"]}
    byte_names = _spell_out(content, secret)
    for token in content["added_tokens"]:
        token |= {"content": names[token["content"]], "special": True, "normalized": False}
    model, names = content["model"], byte_names | names
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(text, text): i for text, i in model["vocab"].items()}
    else:  # pieces with their scores, by id
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    content["post_processor"] = None
    return json.dumps(content)


def added_tokens(tokenizer_json: str) -> list[int]:
    """Return the ids of the tokenizer's added tokens."""
    return [token["id"] for token in json.loads(tokenizer_json)["added_tokens"]]


def error_line(error: str) -> str:
    """Return the one line of llguidance's `error` that says what is wrong."""
    if "NoExtensionBias" in error:
        return "no text can match"
    # Token names and parser state are internal.
    text = error.partition("<state>")[0].partition("; following special tokens")[0].strip()
    # For a regular expression, the parser's own message comes last.
    text = text.rpartition("error: ")[2] or text
    line = next(iter(text.splitlines()), "it cannot be enforced")
    return re.sub(r"^at \d+\(\d+\): ", "", line)[:MAX_ERROR_LENGTH]


def json_rule(schema: dict[str, object]) -> str:
    """Return the Lark expression for JSON that matches `schema`."""
    return "%json " + json.dumps(schema | {"x-guidance": {"whitespace_pattern": _SPACE}})


def escape_regex(text: str) -> str:
    """Return `text` escaped to match literally in a regular expression."""
    return "".join(char if char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)


def lark_regex(expression: str) -> str:
    """Return the regular expression `expression` as a Lark literal between slashes."""
    return f"/{_SLASH.sub(_escaped_slash, expression)}/"


def _rules(form: Form) -> str:
    """Return the Lark rules of a form that is our own, or that follows `form.before`."""
    rules = ["start: before answer", form.before] if form.before else ["start: answer"]
    if form.kind is FormKind.JSON_SCHEMA:
        rules.append(f"answer: {json_rule(json.loads(form.text))}")
    elif form.kind is FormKind.JSON_OBJECT:
        rules.append(f"answer: {json_rule({'type': 'object'})}")
    elif form.kind is FormKind.REGEX:
        rules.append(f"answer: {lark_regex(form.text)}")
    elif form.kind is FormKind.CHOICE:
        rules.append(f"answer: /{'|'.join(map(escape_regex, form.choices))}/")
    else:
        rules.append(form.text)
    return "\n".join(rules)


def _spell_out(content: dict[str, Any], secret: str) -> dict[str, str]:
    """Replace a Metaspace decoder of the tokenizer `content` by equivalent steps, in place.

    Returns:
        New, unguessable names for pieces that look like byte tokens but are plain text.
    """
    decoder = content["decoder"] or {}
    steps = decoder.get("decoders", [decoder])
    kinds = {step.get("type") for step in steps}
    if "Metaspace" not in kinds:
        return {}
    spelled = [
        {"type": "Replace", "pattern": {"String": step["replacement"]}, "content": " "}
        if step["type"] == "Metaspace"
        else step
        for step in steps
    ]
    if "ByteFallback" in kinds:
        content["decoder"] = {"type": "Sequence", "decoders": spelled}
        return {}
    content["decoder"] = {"type": "Sequence", "decoders": [*spelled, {"type": "ByteFallback"}]}
    byte_pieces = (f"<0x{byte:02X}>" for byte in range(256))
    return {piece: f"\ue000{secret}:{piece}" for piece in byte_pieces}


def _leave_out(content: dict[str, Any]) -> None:
    """Remove tokens beyond the base model from the tokenizer `content`, and marks in token names.

    A form has no part that the tokenizer does not know, so nothing needs marks.
    """
    model, steps = content["model"], (content["decoder"] or {}).get("decoders", [])
    marks = {
        ord(step["pattern"]["String"]): ""
        for step in steps
        if step["type"] == "Replace" and step["pattern"].get("String") in MARKS
    }
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        end = vocabulary.get(FIRST_EXTRA, len(vocabulary))
        kept = {text: token for text, token in vocabulary.items() if token < end}
        if len(kept) < len(vocabulary):
            model["merges"] = [
                pair for pair in model["merges"] if kept.keys() >= {*pair, "".join(pair)}
            ]
        model["vocab"] = {text.translate(marks): token for text, token in kept.items()}
    else:
        texts = [text for text, _ in vocabulary]
        del vocabulary[texts.index(FIRST_EXTRA) if FIRST_EXTRA in texts else len(texts) :]
        model["vocab"] = [[text.translate(marks), score] for text, score in vocabulary]
    if marks:
        spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        content |= {"normalizer": spaces, "pre_tokenizer": None}


def _escaped_slash(found: re.Match[str]) -> str:
    return {"/": r"\/", "\n": r"\n"}.get(found[0], found[0])


def _of_schema(schema: str) -> str:
    return LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": _SPACE})
