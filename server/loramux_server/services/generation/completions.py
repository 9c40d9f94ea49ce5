"""The engine's output for one call, turned into response chunks."""

from collections.abc import Iterator
from contextlib import contextmanager

from loramux.v1 import generation_pb2
from loramux_server.services.generation.call import GenerationCall
from loramux_server.services.generation.prompt_logprobs import PromptFirst, positions
from loramux_server.services.submission import Submission
from loramux_server.wire.messages import PromptLogprobs, Token


class Completions:
    """The completions of one call, until each has ended."""

    def __init__(
        self, call: GenerationCall, submission: Submission[Token | PromptLogprobs]
    ) -> None:
        """Start without tokens; those of `call` arrive through `submission`."""
        self._call = call
        self._submission = submission
        self._arriving = PromptFirst(submission.mailbox, is_asked=call.returns_prompt_logprobs)
        self.outputs = call.outputs()
        self.num_open = len(self.outputs)
        self._response = call.first_response()
        """The next response."""
        self._ends_with_prompt = False
        """Whether only log-probabilities of the prompt were asked for."""

    @contextmanager
    def accounted(self) -> Iterator[None]:
        """Charge what was used to the quota after the block.

        A request that asked for tokens and got none is free. Tokens that were generated and not
        taken count, except for those after a stop string.
        """
        try:
            yield
        finally:
            num_generated = sum(
                output.num_tokens + (0 if output.is_finished else self._arriving.num_waiting(index))
                for index, output in enumerate(self.outputs)
            )
            is_done = num_generated or any(output.is_finished for output in self.outputs)
            self._call.reserved.use(
                self._call.prepared.num_prompt + num_generated if is_done else 0
            )

    async def take(self) -> dict[int, list[Token]]:
        """Wait, and return the tokens that have arrived, in order, by completion index.

        The first completion may have no token yet, once the prompt's log-probabilities have
        arrived.

        Raises:
            LoramuxError: As `Mailbox.take`.
        """
        prompt, arrived = await self._arriving.take()
        if prompt:
            prepared = self._call.prepared
            logprobs = await positions(prepared.prompt, prompt, prepared.tokenizer)
            self._response.prompt_logprobs.extend(logprobs)
            self._ends_with_prompt = prompt.finish is not None
        return arrived

    def push(self, index: int, tokens: list[Token]) -> generation_pb2.StreamGenerateResponse | None:
        """Return the response for `tokens` of the completion at `index`; None if it has ended."""
        output = self.outputs[index]
        if output.is_finished:
            return None
        response, self._response = self._response, generation_pb2.StreamGenerateResponse()
        if self._ends_with_prompt:
            output.end(response.delta)
        elif count := output.push(tokens, response.delta):
            self._call.observer.tokens(index, count)
            num_generated = self._call.observer.num_generated
            self._call.reserved.use(self._call.prepared.num_prompt + num_generated)
        if output.is_finished:
            self.num_open -= 1
            self._submission.finish(index)
            self._call.place.finished(output.num_tokens)
            if not self.num_open:
                num_generated = sum(output.num_tokens for output in self.outputs)
                self._call.sum_up(response, self.outputs, num_generated)
        return response
