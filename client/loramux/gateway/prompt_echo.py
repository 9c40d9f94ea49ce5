"""What an answer returns of its prompt: OpenAI's `echo` and vLLM's `prompt_logprobs`."""

from collections.abc import Sequence
from dataclasses import dataclass

from loramux.gateway.offsets import TextOffsets, joined, offsets_in
from loramux.gateway.refusal import unsupported
from loramux.types import ServerInfo
from loramux.v1 import generation_pb2

LEAST = -9999.0
"""Stands for the logarithm of zero, since JSON has no infinity."""

Positions = Sequence[generation_pb2.PositionLogprobs]


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """What to return of prompts."""

    echoes: bool = False
    """Whether the text of a choice begins with its prompt."""
    num_logprobs: int | None = None
    """Likeliest tokens per position of an echoed prompt; None for no log-probabilities."""
    num_prompt_logprobs: int | None = None
    """The same for `prompt_logprobs`."""
    are_truncated: bool = False
    """Whether prompts may be truncated, so that only the server knows what remains."""

    def check(self, server: ServerInfo) -> None:
        """Check that `server` supports these options.

        Raises:
            InvalidArgumentError: Prompts are echoed, but the base model is an encoder-decoder,
                whose output does not continue the prompt.
        """
        if self.echoes and server.kind == "seq2seq":
            raise unsupported(
                "echo",
                f"echo is true, but the output of the base model, {server.architecture}, does not "
                "continue the prompt; leave it out",
            )

    def wanted(self, prompt: str | list[int] | None, *, makes_tokens: bool) -> int | None:
        """Return how many likeliest tokens to request per prompt position; None for nothing.

        Args:
            prompt: Text, token ids, or None for messages.
            makes_tokens: Whether any tokens are generated.
        """
        wanted = [self.num_prompt_logprobs]
        if self.echoes:
            # Only the server knows the text of token ids and of truncated prompts, and it accepts a
            # request for no tokens only if it asks for log-probabilities of the prompt.
            needs_tokens = not makes_tokens or not isinstance(prompt, str) or self.are_truncated
            wanted.append(0 if self.num_logprobs is None and needs_tokens else self.num_logprobs)
        return max((each for each in wanted if each is not None), default=None)


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that is returned before the generated text."""

    text: str = ""
    positions: Positions = ()
    """Empty without log-probabilities."""
    offsets: Sequence[int] = ()


NOTHING = Echo()


def echo_of(
    options: PromptOptions, request: generation_pb2.GenerateRequest, positions: Positions
) -> Echo:
    """Return the echo of the prompt of `request`; `positions` are its log-probabilities."""
    if not options.echoes:
        return NOTHING
    tokens = [position.chosen for position in positions]
    given = "" if options.are_truncated else request.prompt
    text = given or joined(tokens)
    if options.num_logprobs is None:
        return Echo(text)
    offsets = offsets_in(text, tokens) if given else TextOffsets().of(tokens)
    return Echo(text, positions, offsets)


def prompt_logprobs(count: int, positions: Positions) -> list[dict[str, object] | None]:
    """Return `positions` in vLLM's form, each with the `count` likeliest tokens."""
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
