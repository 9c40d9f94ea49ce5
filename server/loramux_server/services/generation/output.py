"""The tokens of one completion, turned into response chunks."""

from collections.abc import Callable, Iterable

from loramux.v1 import generation_pb2
from loramux_server.reasoning.channel_reader import ChannelReader
from loramux_server.reasoning.reader import ReasoningReader, Thought
from loramux_server.services.generation.sampling import TextOptions
from loramux_server.text.decoder import TextDecoder
from loramux_server.text.stop_strings import StopStrings
from loramux_server.tools.reader import Read, Reader
from loramux_server.wire.messages import Finish, Logprobs, Token


class Output:
    """Detokenizes one completion, finds its stop strings, and counts its tokens."""

    def __init__(
        self,
        index: int,
        decoder: TextDecoder | None,
        bytes_of: Callable[[int], bytes],
        options: TextOptions,
        min_tokens: int,
        reasoning: ReasoningReader | ChannelReader | None = None,
        calls: Reader | None = None,
    ) -> None:
        """Prepare.

        Args:
            index: Index of the completion.
            decoder: Detokenizes it; None if the base has no tokenizer.
            bytes_of: Returns the bytes of a token.
            options: How its text is post-processed.
            min_tokens: Tokens before which stop strings are ignored.
            reasoning: Separates reasoning from the text; None to leave it there.
            calls: Parses tool calls in the rest; None if there are no tools.
        """
        self._index = index
        self._bytes_of = bytes_of
        self._decoder = decoder
        self._stops = StopStrings(options.stops, include=options.include_stop)
        self._min_tokens = min_tokens
        self._reasoning = reasoning
        self._calls = calls
        self.num_tokens = 0
        self.num_reasoning = 0
        """Tokens of separated reasoning."""
        self._num_unknown = 0
        """Tokens since the last one that completed any text or reasoning."""
        self.finish_reason = generation_pb2.FINISH_REASON_UNSPECIFIED

    @property
    def is_finished(self) -> bool:
        """Whether the completion has ended."""
        return bool(self.finish_reason)

    def push(self, tokens: Iterable[Token], chunk: generation_pb2.Completion) -> int:
        """Fill in the chunk for `tokens`, and return how many of them belong to the completion.

        The chunk has a finish_reason if it ends the completion. The engine may have generated more
        tokens after a stop string, which are ignored.
        """
        before = self.num_tokens
        chunk.index = self._index
        text: list[str] = []
        for token in tokens:
            self.num_tokens += 1
            self._num_unknown += 1
            chunk.token_ids.append(token.token)
            if token.logprobs:
                chunk.logprobs.append(self._position_logprobs(token.token, token.logprobs))
            if self._decode(token, text, chunk):
                self.finish_reason = chunk.finish_reason
                break
        chunk.text = "".join(text)
        return self.num_tokens - before

    def end(self, chunk: generation_pb2.Completion) -> None:
        """Fill in the only chunk of a completion for which no tokens were asked."""
        chunk.index = self._index
        chunk.finish_reason = generation_pb2.FINISH_REASON_LENGTH
        self.finish_reason = chunk.finish_reason

    def _position_logprobs(self, token: int, logprobs: Logprobs) -> generation_pb2.PositionLogprobs:
        """Return the log-probabilities at the position of `token`."""
        chosen, *top = (
            generation_pb2.TokenLogprob(token_id=each, logprob=logprob, utf8=self._bytes_of(each))
            for each, logprob in [(token, logprobs.chosen), *logprobs.top]
        )
        return generation_pb2.PositionLogprobs(chosen=chosen, top=top)

    def _decode(self, token: Token, text: list[str], chunk: generation_pb2.Completion) -> bool:
        """Append the text of `token`; note in `chunk` if the completion ends, and return that."""
        decoded = self._decoder.step(token.token) if self._decoder else ""
        if self._decoder and token.finish is not None:
            decoded += self._decoder.end()
        stop = None
        if self.num_tokens > self._min_tokens:
            decoded, stop = self._stops.push(decoded)
        is_full = self._read(decoded, text, chunk)
        if stop is not None:
            chunk.stop_string = stop
        elif token.finish is not None:
            is_full |= self._read(self._stops.flush(), text, chunk)
            if token.finish is Finish.STOP:
                chunk.stop_token_id = token.token
        elif not is_full:
            return False
        if self._reasoning:
            self._take(self._reasoning.flush(), text, chunk)
        if self._calls:
            is_ended = stop is None and token.finish is Finish.STOP
            self._add(self._calls.flush(is_ended=is_ended), text, chunk)
        if stop is None and token.finish is Finish.LENGTH and not is_full:
            chunk.finish_reason = generation_pb2.FINISH_REASON_LENGTH
        elif self._calls and self._calls.num_calls:
            chunk.finish_reason = generation_pb2.FINISH_REASON_TOOL_CALLS
        else:
            chunk.finish_reason = generation_pb2.FINISH_REASON_STOP
        return True

    def _read(self, decoded: str, text: list[str], chunk: generation_pb2.Completion) -> bool:
        """Split `decoded` into reasoning, calls and text; return whether no call may follow."""
        if self._reasoning is None and self._calls is None:
            text.append(decoded)
            return False
        found = self._reasoning.push(decoded) if self._reasoning else Thought("", decoded)
        return self._take(found, text, chunk)

    def _take(self, found: Thought, text: list[str], chunk: generation_pb2.Completion) -> bool:
        if found.reasoning:
            chunk.reasoning += found.reasoning
            self.num_reasoning += self._num_unknown
        if found.reasoning or found.text:
            self._num_unknown = 0
        if self._calls is None:
            text.append(found.text)
            return False
        self._add(self._calls.push(found.text), text, chunk)
        return self._calls.is_full

    def _add(self, read: Read, text: list[str], chunk: generation_pb2.Completion) -> None:
        text.append(read.text)
        for call in read.calls:
            chunk.tool_calls.add(id=call.id, name=call.name, arguments=call.arguments)


def join(chunks: list[generation_pb2.Completion]) -> generation_pb2.Completion:
    """Merge the chunks of one completion."""
    whole = generation_pb2.Completion()
    for chunk in chunks:
        whole.MergeFrom(chunk)
    whole.text = "".join(chunk.text for chunk in chunks)
    whole.reasoning = "".join(chunk.reasoning for chunk in chunks)
    return whole
