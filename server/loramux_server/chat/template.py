"""Chat templates as transformers runs them: Jinja2 in its sandbox, with the same helpers.

The semantics are those of `apply_chat_template` in transformers 5.
"""

import datetime
import json
import re
from collections.abc import Iterable, Mapping
from typing import NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from loramux_server.chat.messages import MARKS, Conversation

MAX_RENDERED = 1 << 20
"""Most characters that a template may write."""
_OTHERS = re.compile(f"[^\\x00-\\x7f{MARKS}]")
"""Characters that are neither ASCII nor a mark; see `loramux_server.chat.shield`."""


class RefusedMessagesError(Exception):
    """A template called `raise_exception`: it rejects the messages."""


class FailedTemplateError(Exception):
    """A template cannot be parsed, failed, or exceeded a limit."""


class _Generation(Extension):
    """`{% generation %}` marks the model's output for training; here it has no effect."""

    tags = {"generation"}  # noqa: RUF012 - Jinja only reads it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _PlainNamespace(Namespace):
    """Jinja's namespace without access to attributes that begin with an underscore."""

    def __init__(self, *args: Iterable[tuple[str, object]], **attributes: object) -> None:
        values = dict(*args, **attributes)
        for name in values:
            _refuse_underscore(name)
        super().__init__(values)

    def __setitem__(self, name: str, value: object) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


class Template:
    """A compiled template."""

    def __init__(self, source: str) -> None:
        """Compile `source`.

        Raises:
            FailedTemplateError: It cannot be parsed or compiled.
        """
        self.source = source
        environment = _environment()
        tree = _parsed(environment, source)
        self.literals = {
            found.value for found in tree.find_all(nodes.Const) if isinstance(found.value, str)
        } | {found.attr for found in tree.find_all(nodes.Getattr)}
        """Strings that the template may search for in its input."""
        try:
            self._compiled = environment.from_string(tree)
        except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError) as error:
            raise FailedTemplateError(_error_text(error)) from None

    def render(
        self,
        conversation: Conversation,
        *,
        add_generation_prompt: bool,
        variables: Mapping[str, str],
    ) -> str:
        """Return `conversation` as rendered by the template.

        Args:
            conversation: The conversation.
            add_generation_prompt: Whether the template adds the start of an answer.
            variables: Variables of every template; those of `conversation` take precedence.

        Raises:
            RefusedMessagesError: It rejects the messages.
            FailedTemplateError: It failed, or wrote more than MAX_RENDERED characters.
        """
        pieces: list[str] = []
        length = 0
        try:
            for piece in self._compiled.generate(
                {"documents": None, **variables, **conversation.variables}
                | {
                    "messages": [
                        message.as_message(
                            has_text_arguments=conversation.has_text_arguments,
                            lists_contents=conversation.lists_contents,
                        )
                        for message in conversation.messages
                    ],
                    "tools": [tool.as_tool() for tool in conversation.tools] or None,
                    "add_generation_prompt": add_generation_prompt,
                }
            ):
                length += len(piece)
                if length > MAX_RENDERED:
                    raise FailedTemplateError(f"its output exceeds {MAX_RENDERED} characters")
                pieces.append(piece)
        except (RefusedMessagesError, FailedTemplateError):
            raise
        # A template is a program: it can raise whatever Python's operators and methods raise.
        except Exception as error:
            raise FailedTemplateError(_error_text(error)) from None
        return "".join(pieces)


def check_syntax(source: str) -> None:
    """Demand that `source` can be parsed; it is neither compiled nor run.

    Raises:
        FailedTemplateError: It cannot be parsed.
    """
    _parsed(_environment(), source)


def _parsed(environment: jinja2.Environment, source: str) -> nodes.Template:
    try:
        # Not `environment.parse`: to report an error, that compiles Python code.
        return Parser(environment, source).parse()
    except jinja2.TemplateSyntaxError as error:
        raise FailedTemplateError(f"line {error.lineno}: {error.message}") from None
    except RecursionError:
        raise FailedTemplateError("it is nested too deeply") from None


def _error_text(error: BaseException) -> str:
    """Return `error` as text, truncated: a template may put a whole conversation into it."""
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= 300 else f"{text[:300]}…"


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no attribute {name!r}")


def _raise_exception(message: object) -> NoReturn:
    raise RefusedMessagesError(str(message)[:1000])


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters.
    written = json.dumps(
        value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys
    )
    # `ensure_ascii` must not escape marks, which are replaced by other characters later.
    return _OTHERS.sub(_escaped, written) if ensure_ascii else written


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


class _PlainDict:
    """A callable like `dict`, without the attributes of the class."""

    def __call__(self, *args: Iterable[tuple[str, object]], **entries: object) -> dict[str, object]:
        return dict(*args, **entries)


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _PlainDict()
    environment.globals["namespace"] = _PlainNamespace
    return environment
