"""How the tokens of a completion are chosen."""

from msgspec import Struct

from loramux_server.forms.form import Form

MAX_LOGPROBS = 20
"""Tokens whose log-probabilities are told at a position."""


class Sampling(Struct, frozen=True, kw_only=True):
    """How one completion's tokens are chosen; every default is filled in and checked."""

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
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    """Likeliest tokens that are told at each position of the prompt; None where nothing is."""
    form: Form | None = None
    """What the text has to be; None for any."""

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < 1e-5

    @property
    def is_plain(self) -> bool:
        """Whether a step can do all that is asked for."""
        return self.form is None and (self.num_logprobs or 0) <= MAX_LOGPROBS

    @property
    def changes_logits(self) -> bool:
        """Whether logits differ from the model's own before a token is chosen."""
        return bool(
            self.logit_bias
            or self.repetition_penalty != 1.0
            or self.presence_penalty
            or self.frequency_penalty
            or self.min_tokens
        )
