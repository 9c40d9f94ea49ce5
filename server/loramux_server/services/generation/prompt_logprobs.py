"""Log-probabilities of prompts: their limit, and the message for them."""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np

from loramux.v1 import generation_pb2
from loramux_server.engine_link.mailbox import Mailbox
from loramux_server.field_errors import wrong
from loramux_server.services.pooling.runner import postprocess
from loramux_server.text.tokenizer import TextTokenizer
from loramux_server.wire.messages import PromptLogprobs, Token

MAX_PROMPT_LOGPROBS = 1 << 18
"""Maximum log-probabilities of one prompt: about 6 MB of a message."""


def check_prompt_logprobs(params: generation_pb2.SamplingParams, num_prompt: int) -> None:
    """Check that the log-probabilities of a prompt of `num_prompt` tokens fit an answer.

    Raises:
        InvalidArgumentError: There are too many.
    """
    if not params.HasField("prompt_logprobs"):
        return
    num_logprobs = num_prompt * (1 + params.prompt_logprobs)
    if num_logprobs > MAX_PROMPT_LOGPROBS:
        raise wrong(
            "sampling.prompt_logprobs",
            f"is {params.prompt_logprobs}; with the prompt's own tokens this makes {num_logprobs} "
            f"log-probabilities; expected at most {MAX_PROMPT_LOGPROBS} in a response",
        )


class PromptFirst:
    """Reads the mailbox of one call; the prompt's log-probabilities come before any tokens."""

    def __init__(self, mailbox: Mailbox[Token | PromptLogprobs], *, is_asked: bool) -> None:
        """Prepare; `is_asked` says whether the prompt's log-probabilities are asked for."""
        self._mailbox = mailbox
        self._is_awaited = is_asked
        self._held: dict[int, list[Token]] = {}
        """Tokens that came earlier, from other completions: only the first computes the whole
        prompt."""

    async def take(self) -> tuple[PromptLogprobs | None, dict[int, list[Token]]]:
        """Wait, and return the prompt's log-probabilities (once), and tokens by completion.

        Raises:
            LoramuxError: As `Mailbox.take`.
        """
        if not self._is_awaited:  # nothing but tokens comes
            return None, cast(dict[int, list[Token]], await self._mailbox.take())
        prompt = None
        while prompt is None:
            for index, items in (await self._mailbox.take()).items():
                for item in items:
                    if isinstance(item, PromptLogprobs):
                        prompt = item
                    else:
                        self._held.setdefault(index, []).append(item)
        tokens, self._held, self._is_awaited = self._held, {}, False
        return prompt, {0: []} | tokens

    def num_waiting(self, index: int) -> int:
        """Return how many tokens of the completion at `index` have not been taken."""
        return len(self._held.get(index, ())) + self._mailbox.num_waiting(index)


async def positions(
    prompt: Sequence[int], logprobs: PromptLogprobs, tokenizer: TextTokenizer | None
) -> list[generation_pb2.PositionLogprobs]:
    """Return the message for each token of `prompt`.

    Args:
        prompt: Its tokens.
        logprobs: The engine's log-probabilities of them.
        tokenizer: Provides the bytes of tokens; None if the base has none.
    """
    bytes_of = tokenizer.bytes_of if tokenizer else lambda _: b""
    first = generation_pb2.TokenLogprob(token_id=prompt[0], utf8=bytes_of(prompt[0]))
    others = await postprocess(
        [logprobs.numbers], lambda: list(_others(prompt, logprobs.numbers, bytes_of))
    )
    return [generation_pb2.PositionLogprobs(chosen=first), *others]


def _others(
    prompt: Sequence[int], numbers: bytes, bytes_of: Callable[[int], bytes]
) -> Iterator[generation_pb2.PositionLogprobs]:
    if len(prompt) == 1:
        return
    rows = np.frombuffer(numbers, np.float64).reshape(len(prompt) - 1, -1)
    size = rows.shape[1] // 2
    for token, (rank, *logprobs) in zip(prompt[1:], rows.tolist(), strict=True):
        each = zip((token, *map(int, logprobs[size:])), logprobs[:size], strict=True)
        chosen, *top = (
            generation_pb2.TokenLogprob(token_id=one, logprob=logprob, utf8=bytes_of(one))
            for one, logprob in each
        )
        yield generation_pb2.PositionLogprobs(chosen=chosen, top=top, rank=int(rank))
