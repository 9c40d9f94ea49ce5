"""Sampling parameters of a completion."""

from msgspec import Struct

from loramux_server.forms.form import Form

MAX_LOGPROBS = 20
"""Most top log-probabilities at a position that a caller may ask for."""


class Sampling(Struct, frozen=True, kw_only=True):
    """Sampling parameters of one completion, validated and with all defaults filled in."""

    max_tokens: int
    seed: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that are not generated; none is empty."""
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    """Top log-probabilities at each position of the prompt; None for none, not even its own."""
    form: Form | None = None
    """Structured-output constraint; None if any text is allowed."""

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always chosen."""
        return self.temperature < 1e-5

    @property
    def is_plain(self) -> bool:
        """Whether a step can choose the tokens on the device, without the host."""
        # Whether a longer bad word would be completed depends on the last token, which the host
        # does not know in a step that runs ahead.
        looks_back = any(len(word) > 1 for word in self.bad_words)
        return self.form is None and not looks_back and (self.num_logprobs or 0) <= MAX_LOGPROBS

    @property
    def changes_logits(self) -> bool:
        """Whether the model's logits are adjusted before a token is chosen."""
        return bool(
            self.logit_bias
            or self.bad_words
            or self.repetition_penalty != 1.0
            or self.presence_penalty
            or self.frequency_penalty
            or self.min_tokens
        )
