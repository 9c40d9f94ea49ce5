"""Texts that are not generated, as sequences of tokens."""

from loramux.v1 import generation_pb2
from loramux_server.services.texts import Texts, no_tokens
from loramux_server.store.package_settings import PackageSettings


async def bad_words_of(
    request: generation_pb2.GenerateRequest, texts: Texts, settings: PackageSettings
) -> tuple[tuple[int, ...], ...]:
    """Return the sequences of tokens that `request`, whose fields are checked, excludes.

    As in vLLM, these are the tokens of each bad word without leading white space, and those of the
    word after a space if they are as many and begin with another one.

    Raises:
        InvalidArgumentError: A bad word cannot be tokenized, or has no tokens.
    """
    if not request.sampling.bad_words:
        return ()
    words: list[tuple[str, str]] = []
    for index, word in enumerate(request.sampling.bad_words):
        # vLLM takes no words of white space only, such as a line break.
        field, text = f"sampling.bad_words[{index}]", word.lstrip() or word
        words += [(field, text), (field, f" {text}")]
    tokens = await texts.tokens_of_each(words, settings, parse_special=request.parse_special_tokens)
    found: list[list[int]] = []
    for (field, _), alone, spaced in zip(words[::2], tokens[::2], tokens[1::2], strict=True):
        if not alone:
            raise no_tokens(field)
        found.append(alone)
        if len(spaced) == len(alone) and spaced[0] != alone[0]:
            found.append(spaced)
    return tuple(dict.fromkeys(map(tuple, found)))
