"""Beam search on top of the engine: each step asks for one token after every beam, all at once.

To the engine a beam is a prompt, whose KV blocks are in the prefix cache except for the last one;
only the top tokens of the next position are used. As in vLLM, the engine knows nothing of beams.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from loramux.v1 import generation_pb2
from loramux_server.engine_link.client import EngineClient
from loramux_server.services.deadline import Deadline
from loramux_server.services.generation.beams import BeamOptions, Beams, Found, Likely
from loramux_server.services.generation.call import GenerationCall
from loramux_server.services.submission import Submission
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Finish, Logprobs, Started, Token
from loramux_server.wire.sampling import Sampling


class BeamSearch:
    """The beam search of one call, from its first step to its answer."""

    def __init__(
        self,
        engine: EngineClient,
        call: GenerationCall,
        options: BeamOptions,
        deadline: Deadline,
    ) -> None:
        """Prepare; the caller runs `first` while it awaits `responses`."""
        self._engine = engine
        self._call = call
        self._deadline = deadline
        self._beams = Beams(options)
        self._sampling = Sampling(
            max_tokens=1, seed=0, temperature=0.0, ignore_eos=True, num_logprobs=options.num_likely
        )
        self._num_generated = 0
        self.outputs = call.outputs()
        self.first = Submission[Token](engine, self._started)
        """The first step. All others run within `responses`."""

    @property
    def asks(self) -> list[Ask]:
        """Requests of the next step: one token after each beam."""
        prepared = self._call.prepared
        return [
            Ask(
                [*prepared.prompt, *beam.tokens],
                self._call.adapters.source,
                self._sampling,
                self._call.tenant,
                num_generated=len(beam.tokens),
                images=prepared.images,
                num_source=prepared.num_source,
                cache_salt=self._call.cache_salt,
            )
            for beam in self._beams.running
        ]

    @contextmanager
    def accounted(self) -> Iterator[None]:
        """Charge what was used to the quota after the block: nothing if no token was generated."""
        try:
            yield
        finally:
            num_used = self._call.prepared.num_prompt + self._num_generated
            self._call.reserved.use(num_used if self._num_generated else 0)

    async def responses(self) -> list[generation_pb2.StreamGenerateResponse]:
        """Run the search to its end, and return each of the best completions as one chunk.

        Raises:
            LoramuxError: As `Mailbox.take`.
        """
        beams = self._beams
        beams.advance(await self._likely(self.first))
        while beams.running:
            step = Submission[Token](self._engine, self._started)
            # The call is admitted already: the deadline is enforced here, and the engine must not
            # refuse a step for it.
            running = step.running(self.asks, seconds_left=math.inf, place=self._call.place)
            with running:
                likely = await self._likely(step)
            beams.advance(likely)
        for _ in range(beams.options.num_beams):
            self._call.place.finished(beams.length)
        responses = [
            self._response(index, found)
            for index, found in enumerate(beams.found[: len(self.outputs)])
        ]
        self._call.sum_up(responses[-1], self.outputs, self._num_generated)
        return responses

    async def _likely(self, step: Submission[Token]) -> list[Likely]:
        """Wait for `step`, and return the top tokens of each beam."""
        found: dict[int, Likely] = {}
        with self._deadline.over(step.mailbox):
            while len(found) < len(step.ids):
                for index, (token,) in (await step.mailbox.take()).items():
                    found[index] = cast(Logprobs, token.logprobs).top
                    self._num_generated += 1
                    self._call.observer.tokens(index, 1)
        return [found[index] for index in range(len(found))]

    def _started(self, started: Started) -> None:
        """Record that the search, with all of its beams, left the engine's queue."""
        for _ in range(self._beams.options.num_beams):
            self._call.place.started()
        self._call.observer.started(started)

    def _response(self, index: int, found: Found) -> generation_pb2.StreamGenerateResponse:
        response = generation_pb2.StreamGenerateResponse() if index else self._call.first_response()
        *tokens, last = found.tokens
        finish = Finish.STOP if found.is_stopped else Finish.LENGTH
        tokens_of_beam = [*(Token(0, token) for token in tokens), Token(0, last, finish)]
        self.outputs[index].push(tokens_of_beam, response.delta)
        response.delta.beam_score = found.score
        return response
