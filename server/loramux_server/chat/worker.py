"""The renderer process: `python -m loramux_server.chat.worker FD`.

Templates are untrusted programs, and Jinja's sandbox may have a hole. So this process gives up all
privileges: once it is ready, the kernel denies it files, sockets and processes, and an audit hook
denies imports. The system limits its memory and the CPU time of one rendering, and the frontend
kills it if it does not answer.
"""

import functools

from loramux_server.chat.messages import (
    Answer,
    Conversation,
    Failed,
    Message,
    Refused,
    Render,
    Rendered,
    TemplateTokens,
    decode_render,
    decode_setup,
    encode,
)
from loramux_server.chat.shield import ForgedTokenError, Shield
from loramux_server.chat.template import FailedTemplateError, RefusedMessagesError, Template
from loramux_server.chat.token_patterns import Tokens
from loramux_server.confinement.serve import Work, serve

MEMORY = 1 << 30
"""Limit of the address space in bytes, including Python's own."""
KEPT = 64
"""Compiled templates that are cached."""


class Renderer:
    """Renders with the tokens and variables of one base model and of its adapters."""

    def __init__(self, template_tokens: TemplateTokens) -> None:
        self._template_tokens = template_tokens
        self._tokens = functools.lru_cache(KEPT)(self._tokens_with)
        self._prepared = functools.lru_cache(KEPT)(self._prepare)

    def answer(self, request: Render) -> Answer:
        """Return the rendered conversation, or why there is none."""
        try:
            own = request.own
            variables = {**self._template_tokens.variables, **own.variables}
            named = frozenset(variables.values())
            template, shield = self._prepared(request.template, own.control, own.added, named)
            render = functools.partial(
                template.render,
                add_generation_prompt=request.add_generation_prompt,
                variables=variables,
            )
            return Rendered(shield.pieces(request.conversation, render))
        except (RefusedMessagesError, ForgedTokenError) as error:
            return Refused(str(error))
        except FailedTemplateError as error:
            return Failed(str(error))
        except (MemoryError, RecursionError) as error:
            return Failed(type(error).__name__)

    def _prepare(
        self,
        source: str,
        control: tuple[str, ...],
        added: tuple[str, ...],
        named: frozenset[str],
    ) -> tuple[Template, Shield]:
        template = Template(source)
        return template, Shield(self._tokens(control, added, named), source, template.literals)

    def _tokens_with(
        self, control: tuple[str, ...], added: tuple[str, ...], named: frozenset[str]
    ) -> Tokens:
        """Return the tokens of base and adapter; those that variables name are control tokens."""
        others = (*self._template_tokens.added, *added)
        return Tokens(
            TemplateTokens(
                (
                    *self._template_tokens.control,
                    *control,
                    *(text for text in others if text in named),
                ),
                tuple(text for text in others if text not in named),
            )
        )


def prepare(message: bytes) -> Work:
    """Return the work of this process, set up by `message`, an encoded Setup."""
    setup = decode_setup(message)
    renderer = Renderer(setup.template_tokens)
    _warm(renderer)
    return Work(
        encode(Rendered([])),
        lambda message: encode(renderer.answer(decode_render(message))),
        who="a template",
        memory=MEMORY,
        cpu_seconds=setup.cpu_seconds,
    )


def _warm(renderer: Renderer) -> None:
    """Run Jinja's lazy imports now, while imports are still allowed."""
    used = "{{ messages | tojson }}{{ strftime_now('%Y') }}{{ messages[0].content | title }}"
    for source in (used, "{{ raise_exception('no') }}", "{{ none() }}", "{% if %}"):
        renderer.answer(Render(source, Conversation([Message("user", "<s>")]), True))


if __name__ == "__main__":
    serve(prepare)
