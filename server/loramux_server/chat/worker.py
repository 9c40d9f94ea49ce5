"""The process that renders templates: `python -m loramux_server.chat.worker FD`.

Templates are programs of strangers, and a sandbox may have a hole. So this process has nothing:
once it is ready, the kernel lets it open no file, socket or process, and an audit hook lets it
import nothing; its memory and the processor time of one rendering are limited by the system, and
the frontend ends it where it does not answer.
"""

import functools

from loramux_server.chat.messages import (
    Answer,
    Failed,
    Refused,
    Render,
    Rendered,
    Talk,
    Turn,
    Words,
    decode_render,
    decode_setup,
    encode,
)
from loramux_server.chat.shield import ForgedTokenError, Shield, Tokens
from loramux_server.chat.template import FailedTemplateError, RefusedMessagesError, Template
from loramux_server.confinement.serve import Work, serve

MEMORY = 1 << 30
"""Bytes of address space, Python's own among them."""
KEPT = 64
"""Templates that stay compiled."""


class Renderer:
    """Renders with the tokens and variables of one base model, and those of adapters on it."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._tokens = functools.lru_cache(KEPT)(self._tokens_with)
        self._prepared = functools.lru_cache(KEPT)(self._prepare)

    def answer(self, request: Render) -> Answer:
        """Return what the template makes of the messages, or why it makes nothing."""
        try:
            own = request.own
            variables = {**self._words.variables, **own.variables}
            named = frozenset(variables.values())
            template, shield = self._prepared(request.template, own.control, own.added, named)
            render = functools.partial(
                template.render,
                add_generation_prompt=request.add_generation_prompt,
                variables=variables,
            )
            return Rendered(shield.pieces(request.talk, render))
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
        """Return those of base and adapter; what templates have a name for is control."""
        others = (*self._words.added, *added)
        return Tokens(
            Words(
                (*self._words.control, *control, *(text for text in others if text in named)),
                tuple(text for text in others if text not in named),
            )
        )


def prepare(message: bytes) -> Work:
    """Return how to render after `message`, a Setup."""
    setup = decode_setup(message)
    renderer = Renderer(setup.words)
    _warm(renderer)
    return Work(
        encode(Rendered([])),
        lambda message: encode(renderer.answer(decode_render(message))),
        who="a template",
        memory=MEMORY,
        cpu_seconds=setup.cpu_seconds,
    )


def _warm(renderer: Renderer) -> None:
    """Import now what Jinja imports when it first needs it."""
    used = "{{ messages | tojson }}{{ strftime_now('%Y') }}{{ messages[0].content | title }}"
    for source in (used, "{{ raise_exception('no') }}", "{{ none() }}", "{% if %}"):
        renderer.answer(Render(source, Talk([Turn("user", "<s>")]), True))


if __name__ == "__main__":
    serve(prepare)
