"""What an answer tells of its prompt: OpenAI's `echo`, and `prompt_logprobs` as vLLM has it."""

from collections.abc import Sequence
from dataclasses import dataclass

from loramux.gateway.offsets import TextOffsets, joined, offsets_in
from loramux.gateway.refusal import unsupported
from loramux.types import ServerInfo
from loramux.v1 import generation_pb2

LEAST = -9999.0
"""Stands for the logarithm of zero, which JSON has no number for."""

Positions = Sequence[generation_pb2.PositionLogprobs]


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """What is to be told of prompts."""

    echoes: bool = False
    """Whether the text of a choice begins with them."""
    num_logprobs: int | None = None
    """Likeliest tokens at each position of them that is given back; None for none at all."""
    num_prompt_logprobs: int | None = None
    """The same for `prompt_logprobs`."""

    def check(self, server: ServerInfo) -> None:
        """Demand that what follows a prompt that is given back goes on with it, at `server`.

        Raises:
            InvalidArgumentError: It is another text.
        """
        if self.echoes and server.kind == "seq2seq":
            raise unsupported(
                "echo",
                f"echo is true, but the base model, {server.architecture}, writes another text "
                "than its prompt; leave it out",
            )

    def wanted(self, prompt: str | list[int] | None, *, makes_tokens: bool) -> int | None:
        """Return how many likeliest tokens the server has to tell; None if nothing at all.

        Args:
            prompt: Text, token ids, or None for messages.
            makes_tokens: Whether anything follows it.
        """
        wanted = [self.num_prompt_logprobs]
        if self.echoes:
            # The text of tokens is known there alone; and who asks for no token must ask for this.
            needs_tokens = not makes_tokens or not isinstance(prompt, str)
            wanted.append(0 if self.num_logprobs is None and needs_tokens else self.num_logprobs)
        return max((each for each in wanted if each is not None), default=None)


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that is given back before what follows it."""

    text: str = ""
    positions: Positions = ()
    """Empty where no log-probabilities are."""
    offsets: Sequence[int] = ()


NOTHING = Echo()


def echo_of(
    options: PromptOptions, asked: generation_pb2.GenerateRequest, positions: Positions
) -> Echo:
    """Return what is given back of the prompt of `asked`, of which `positions` are told."""
    if not options.echoes:
        return NOTHING
    tokens = [position.chosen for position in positions]
    text = asked.prompt or joined(tokens)
    if options.num_logprobs is None:
        return Echo(text)
    offsets = offsets_in(text, tokens) if asked.prompt else TextOffsets().of(tokens)
    return Echo(text, positions, offsets)


def prompt_logprobs(count: int, positions: Positions) -> list[dict[str, object] | None]:
    """Return `positions` as vLLM tells them, each with the `count` likeliest tokens."""
    return [None, *(_by_id(position, count) for position in positions[1:])]


def _by_id(position: generation_pb2.PositionLogprobs, count: int) -> dict[str, object]:
    ranked = [(position.rank, position.chosen), *enumerate(position.top[:count], 1)]
    return {
        str(token.token_id): {
            "logprob": max(token.logprob, LEAST),
            "rank": rank,
            "decoded_token": token.utf8.decode("utf-8", "replace") if token.utf8 else None,
        }
        for rank, token in ranked
    }
