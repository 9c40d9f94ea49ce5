"""How templates of common families write calls, and reading and demanding them so."""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from llguidance import LLMatcher, LLTokenizer
from transformers import PreTrainedTokenizerFast

from loramux_server.chat.encoder import ChatEncoder
from loramux_server.chat.messages import Call, Conversation, Message, Piece, Tool
from loramux_server.chat.shield import Shield
from loramux_server.chat.template import FailedTemplateError, RefusedMessagesError, Template
from loramux_server.chat.token_patterns import Tokens
from loramux_server.forms.form import Form
from loramux_server.forms.grammar import LIMITS, grammar_of, tokenizer_of
from loramux_server.tools.call_reader import CallReader
from loramux_server.tools.form import Otherwise, form_of_calls
from loramux_server.tools.ids import is_named, named_id
from loramux_server.tools.probe import Probe
from loramux_server.tools.reader import ToolCall
from loramux_server.tools.syntax import ToolSyntax, joined
from tests.support.templates import chat_tokenizer
from tests.support.tool_templates import TOOL_TEMPLATES

THEIRS = chat_tokenizer()
OURS = ChatEncoder(THEIRS.backend_tokenizer.to_str())
WORDS = OURS.template_tokens(dict(THEIRS.special_tokens_map))
ENDS = {"</s>"}
WEATHER = Tool(
    "get_weather",
    "What the weather is like; é <|im_end|>",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 12},
            "unit": {"enum": ["celsius", "fahrenheit"]},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
)
CLOCK = Tool("clock")
TOOLS = [WEATHER, CLOCK]


def pieces_of(template: str, conversation: Conversation, *, prompt: bool = False) -> list[Piece]:
    """Return what a template makes of a conversation."""
    compiled, shield = _prepared(template)
    render = partial(compiled.render, add_generation_prompt=prompt, variables=WORDS.variables)
    return shield.pieces(conversation, render)


@lru_cache(32)
def _prepared(template: str) -> tuple[Template, Shield]:
    compiled = Template(template)
    return compiled, Shield(Tokens(WORDS), template, compiled.literals)


def syntax_by(template: str, ends: set[str] = ENDS) -> ToolSyntax:
    """Return how a template writes calls, in answers that one of `ends` ends."""

    async def write(conversation: Conversation, prompt: bool) -> list[Piece] | None:
        try:
            return pieces_of(template, conversation, prompt=prompt)
        except (RefusedMessagesError, FailedTemplateError):
            return None

    found = asyncio.run(Probe(write, OURS.vocabulary, ends).syntax())
    assert isinstance(found, ToolSyntax)
    return found


SYNTAXES = {name: syntax_by(template) for name, template in TOOL_TEMPLATES.items()}


def read(
    name: str,
    text: str,
    cut: Callable[[str], Sequence[str]] = list,
    most: int | None = None,
    tools: Sequence[Tool] = TOOLS,
) -> tuple[str, list[tuple[str, Any]]]:
    """Return the text and the calls in what comes in pieces, by default each character alone."""
    reader = CallReader(SYNTAXES[name], tools, most=most)
    texts: list[str] = []
    calls: list[ToolCall] = []
    for found in (*map(reader.push, cut(text)), reader.flush()):
        texts.append(found.text)
        calls += found.calls
    assert reader.num_calls == len(calls) == len({call.id for call in calls})
    assert all(
        is_named(call.id, call.name)
        if SYNTAXES[name].is_named_by_id
        else re.fullmatch(r"\w{9}", call.id)
        for call in calls
    )
    return "".join(texts), [(call.name, json.loads(call.arguments)) for call in calls]


def written(name: str, calls: Sequence[tuple[str, Any]], content: str = "") -> str:
    """Return what a model writes that was trained with a template, without control tokens at the
    end."""
    message = Message(
        "assistant",
        content,
        [
            Call(named_id(call[0], number) if SYNTAXES[name].is_named_by_id else "abcDEF012", *call)
            for number, call in enumerate(calls)
        ],
    )
    takes_text = SYNTAXES[name].takes_text
    conversation = Conversation(
        [Message("user", "x"), message], TOOLS, has_text_arguments=takes_text
    )
    whole = joined(pieces_of(TOOL_TEMPLATES[name], conversation))
    before = joined(
        pieces_of(
            TOOL_TEMPLATES[name],
            Conversation([Message("user", "x")], conversation.tools),
            prompt=True,
        )
    )
    answer = whole.removeprefix(before.removesuffix("<think>\n"))
    for end in ("<|im_end|>\n", "</s>", "<|eot_id|>", "<end_of_turn>\n"):
        answer = answer.removesuffix(end)
    return answer


def matcher_of(
    name: str,
    otherwise: Otherwise = None,
    *,
    is_parallel: bool = True,
    tools: Sequence[Tool] = TOOLS,
) -> LLMatcher:
    """Return what follows a form of calls; the arguments are those of `form_of_calls`."""
    return matcher_by(form_of_calls(SYNTAXES[name], tools, otherwise, is_parallel=is_parallel))


def matcher_by(form: Form, theirs: PreTrainedTokenizerFast = THEIRS) -> LLMatcher:
    """Return what follows a form."""
    tokenizer = LLTokenizer(
        tokenizer_of(theirs.backend_tokenizer.to_str()), n_vocab=len(theirs), eos_token=[1]
    )
    matcher = LLMatcher(tokenizer, grammar_of(form), log_level=0, limits=LIMITS)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def accepts(matcher: LLMatcher, name: str, text: str) -> bool:
    """Return whether an answer may be `text`, in which the added tokens are such."""
    tokens = THEIRS(text, add_special_tokens=False).input_ids
    fresh = matcher.deep_copy()
    return bool(fresh.try_consume_tokens(tokens) == len(tokens) and fresh.is_accepting())
