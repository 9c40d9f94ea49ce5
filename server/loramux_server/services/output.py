"""The tokens of one completion -> the pieces that its reader gets."""

from collections.abc import Callable, Iterable

from loramux.v1 import generation_pb2
from loramux_server.engine.messages import Finish, Logprobs, Token
from loramux_server.services.limits import TextOptions
from loramux_server.stop_strings import StopStrings
from loramux_server.tokenizer import TextDecoder

_FINISH = {
    Finish.STOP: generation_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
}


class Output:
    """Decodes one completion, looks for its stop strings, and counts."""

    def __init__(
        self,
        index: int,
        decoder: TextDecoder | None,
        bytes_of: Callable[[int], bytes],
        options: TextOptions,
        min_tokens: int,
    ) -> None:
        self._index = index
        self._bytes_of = bytes_of
        self._decoder = decoder
        self._stops = StopStrings(options.stops, include=options.include_stop)
        self._min_tokens = min_tokens
        self.num_tokens = 0
        self.finish_reason = generation_pb2.FINISH_REASON_UNSPECIFIED

    @property
    def is_finished(self) -> bool:
        """Whether nothing may follow."""
        return bool(self.finish_reason)

    def push(self, tokens: Iterable[Token], piece: generation_pb2.Completion) -> None:
        """Fill in the piece that `tokens` make; the engine may send more after a stop string.

        The piece has a finish_reason if the completion ends with it; then nothing may follow.
        """
        piece.index = self._index
        text: list[str] = []
        for token in tokens:
            self.num_tokens += 1
            piece.token_ids.append(token.token)
            if token.logprobs:
                piece.logprobs.append(self._told(token.token, token.logprobs))
            if self._decode(token, text, piece):
                break
        piece.text = "".join(text)
        self.finish_reason = piece.finish_reason

    def _told(self, token: int, logprobs: Logprobs) -> generation_pb2.PositionLogprobs:
        """Return what is told of the place of `token`."""
        chosen, *top = (
            generation_pb2.TokenLogprob(token_id=each, logprob=logprob, utf8=self._bytes_of(each))
            for each, logprob in [(token, logprobs.chosen), *logprobs.top]
        )
        return generation_pb2.PositionLogprobs(chosen=chosen, top=top)

    def _decode(self, token: Token, text: list[str], piece: generation_pb2.Completion) -> bool:
        """Append the text of `token`, note in `piece` whether it ends here, and return that."""
        decoded = self._decoder.step(token.token) if self._decoder else ""
        if self.num_tokens <= self._min_tokens:
            text.append(decoded)
        else:
            safe, stop = self._stops.push(decoded)
            text.append(safe)
            if stop is not None:
                piece.finish_reason = generation_pb2.FINISH_REASON_STOP
                piece.stop_string = stop
                return True
        if token.finish is None:
            return False
        text.append(self._stops.flush())
        piece.finish_reason = _FINISH[token.finish]
        if token.finish is Finish.STOP:
            piece.stop_token_id = token.token
        return True


def join(pieces: list[generation_pb2.Completion]) -> generation_pb2.Completion:
    """Return one completion out of its pieces."""
    whole = generation_pb2.Completion()
    for piece in pieces:
        whole.MergeFrom(piece)
    whole.text = "".join(piece.text for piece in pieces)
    return whole
