"""A chat template whose answers are messages on channels, and a tokenizer with its tokens."""

import asyncio
from functools import partial

from llguidance import LLMatcher
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from loramux_server.chat.encoder import ChatEncoder
from loramux_server.chat.messages import Conversation, Piece
from loramux_server.chat.shield import Shield
from loramux_server.chat.template import FailedTemplateError, RefusedMessagesError, Template
from loramux_server.chat.token_patterns import Tokens
from loramux_server.tools.addressed import AddressedSyntax
from loramux_server.tools.probe import Probe
from loramux_server.tools.syntax import ToolSyntax
from tests.support.templates import chat_tokenizer

CHANNELS = """\
{{- '<|start|>system<|message|>You may write on: analysis, commentary, final.<|end|>' }}
{%- if tools %}
    {{- '<|start|>developer<|message|>What you can call:\\n' }}
    {%- for tool in tools %}{{ 'functions.' + tool.function | tojson + '\\n' }}{% endfor %}
    {{- '<|end|>' }}
{%- endif %}
{%- set ns = namespace(called='') %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|start|>functions.' + ns.called + ' to=assistant' }}
        {{- '<|channel|>commentary<|message|>' + message.content + '<|end|>' }}
    {%- elif message.role != 'assistant' %}
        {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
    {%- else %}
        {%- set is_last = loop.last and not add_generation_prompt %}
        {%- if message.thinking and (is_last or message.tool_calls) %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- set function = message.tool_calls[0].function %}
            {%- set ns.called = function.name %}
            {{- '<|start|>assistant to=functions.' + function.name }}
            {{- '<|channel|>commentary json<|message|>' + function.arguments | tojson }}
            {{- '<|call|>' }}
        {%- else %}
            {{- '<|start|>assistant<|channel|>final<|message|>' + message.content }}
            {{- '<|return|>' if is_last else '<|end|>' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant' }}
    {%- if at_once %}{{ '<|channel|>final<|message|>' }}{% endif %}
{%- endif %}"""

_CONTROL = [
    "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>",
]  # fmt: skip
ENDS = {"<|return|>", "<|call|>"}


def channel_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that has a token for each byte, and those of `CHANNELS`."""
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in _CONTROL],
        special_tokens=True,
    )
    return tokenizer


THEIRS = channel_tokenizer()
OURS = ChatEncoder(THEIRS.backend_tokenizer.to_str())
_WORDS = OURS.template_tokens(dict(THEIRS.special_tokens_map))


def pieces_of(template: str, conversation: Conversation, *, prompt: bool = False) -> list[Piece]:
    """Return what a template makes of a conversation."""
    compiled = Template(template)
    render = partial(compiled.render, add_generation_prompt=prompt, variables=_WORDS.variables)
    return Shield(Tokens(_WORDS), template, compiled.literals).pieces(conversation, render)


def tool_syntax_by(template: str) -> ToolSyntax | AddressedSyntax:
    """Return how a template writes calls."""

    async def write(conversation: Conversation, prompt: bool) -> list[Piece] | None:
        try:
            return pieces_of(template, conversation, prompt=prompt)
        except (RefusedMessagesError, FailedTemplateError):
            return None

    return asyncio.run(Probe(write, OURS.vocabulary, ENDS).syntax())


def accepts(matcher: LLMatcher, text: str) -> bool:
    """Return whether an answer may be `text`, in which the added tokens are such."""
    tokens = THEIRS(text, add_special_tokens=False).input_ids
    fresh = matcher.deep_copy()
    return bool(fresh.try_consume_tokens(tokens) == len(tokens) and fresh.is_accepting())
