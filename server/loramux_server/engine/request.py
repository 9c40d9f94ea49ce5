"""One completion on its way through the engine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from loramux_adapters.embedding import Pooling
from loramux_adapters.head import Task
from loramux_server.engine.activation import last_place
from loramux_server.engine.base import Base
from loramux_server.engine.request_parts import Gathered, Shape, StateSlots
from loramux_server.engine.token_counts import TokenCounts, counts_of
from loramux_server.kernels.whole_text import Recall
from loramux_server.models.vision.seen import View
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.messages import Submit
from loramux_server.wire.sampling import Sampling

PLACEHOLDER = 0
"""The token that stands where an adapter says what is."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image, as a prefix knows it."""

    start: int
    """Position of its first token."""
    end: int
    digest: bytes


@dataclass(slots=True, eq=False)
class Request:
    """A prompt, the tokens made so far, and what it holds while it runs."""

    request_id: int
    prompt: list[int]
    """What was asked, after a placeholder for each virtual token of the adapter."""
    adapter: AdapterSource | None
    """None for the base model, also where the prompt lacks what the adapter waits for."""
    sampling: Sampling
    tenant: str = ""
    """Whose it is: only requests of one tenant share KV blocks."""
    active_from: int = 0
    """Position of the first token that the adapter sees; those before are the base's."""
    pooling: Pooling | None = None
    """How its hidden states become one, where it is to be embedded."""
    prediction: Sequence[int] = ()
    """What its output may be; it changes nothing but when that comes."""
    goes_on: bool = False
    """Whether it goes on with a completion that was queued and counted before."""
    weight: int = 1
    """Its tenant's part of a busy engine, beside the weights of others."""
    arrival: float = 0.0
    """When it came, on the engine's clock."""
    deadline: float = math.inf
    """When it has to be finished, on the same clock."""
    second_from: int = 0
    """Position at which the second of two texts begins; 0 where there is none."""
    num_source: int = 0
    """Tokens at the beginning of its prompt that an encoder reads."""
    is_whole: bool = False
    """Whether the model reads its text as a whole: what is to be computed of it is one chunk."""
    recall: Recall = field(default_factory=Recall)
    """What is kept of that text while it runs."""
    pictures: Sequence[Picture] = ()
    """Where in its prompt there are images."""
    view: View | None = None
    """What its model sees in them; None where there are none, or they are not looked at yet."""
    counts: TokenCounts | None = None
    """Tokens of which its parameters say something; None if they leave logits as they are."""
    output: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    """Its block table: the KV block of every `block_size` tokens, in order."""
    block_names: list[bytes] = field(default_factory=list)
    """Names of its full blocks, as far as they were needed; see `prefix.name_blocks`."""
    slots: StateSlots = field(default_factory=StateSlots)
    """Where what its recurrent layers know is."""
    num_named: int = 0
    """Blocks of its table that others can find."""
    num_computed: int = 0
    """Tokens whose keys and values are in the blocks."""
    num_bypassed: int = 0
    """Later requests that started while this one waited for its adapter."""
    has_started: bool = False
    """Whether it ever left the queue, or what it goes on with did."""
    owes_prompt: bool = True
    """Whether what it has to compute before its next token is still to be charged."""
    shape: Shape = field(default_factory=Shape)
    """What may come next where its text has a form."""
    is_held: bool = False
    """Whether it runs only once that is known."""
    gathered: Gathered = field(default_factory=Gathered)
    """What was read of it so far."""
    num_told: int = field(init=False)
    """Tokens of its prompt after which nothing of that kind is wanted any more, or ever was."""
    num_virtual: int = field(init=False)
    """Virtual tokens that its adapter puts before the prompt."""

    def __post_init__(self) -> None:
        self.num_virtual = self.adapter.virtual_tokens if self.adapter else 0
        if self.num_virtual:
            self.prompt = [PLACEHOLDER] * self.num_virtual + self.prompt
            self.second_from += self.num_virtual if self.second_from else 0
            self.num_source += self.num_virtual if self.num_source else 0
        is_wanted = self.sampling.num_prompt_logprobs is not None
        self.num_told = self.num_virtual if is_wanted else len(self.prompt)

    @property
    def num_fillable(self) -> int:
        """Virtual tokens whose keys and values the adapter brings."""
        return self.num_virtual if self.adapter and self.adapter.has_cache else 0

    @staticmethod
    def of(message: Submit, base: Base, arrival: float) -> "Request":
        """Return the request that `message` brings.

        Args:
            message: What the frontend sent.
            base: What answers it.
            arrival: When it came, on the engine's clock.
        """
        ask = message.ask
        source = ask.adapter and ask.adapter.at_rest(base.resting)
        sampling, size = ask.sampling, (source and source.vocab_size) or base.vocab_size
        if size and sampling.top_k >= size:
            # It leaves all, and must not depend on how many tokens others have.
            sampling = msgspec.structs.replace(sampling, top_k=0)
        active_from: int | None = 0
        if source and source.invocation:
            num_asked = len(ask.prompt) - ask.num_made
            active_from = last_place(ask.prompt[:num_asked], source.invocation)
        return Request(
            message.request_id,
            ask.prompt,
            None if active_from is None else source,
            sampling,
            ask.tenant,
            active_from=active_from or 0,
            pooling=ask.pooling,
            prediction=ask.prediction,
            goes_on=ask.num_made > 0,
            has_started=ask.num_made > 0,
            weight=message.weight,
            second_from=ask.second_from,
            num_source=ask.num_source,
            is_whole=base.reads_whole,
            pictures=[
                Picture(each.start, each.start + each.length, each.image.digest)
                for each in ask.images
            ],
            arrival=arrival,
            deadline=math.inf if message.timeout is None else arrival + message.timeout,
            # What an encoder reads is no part of the text that is written.
            counts=counts_of(sampling, ask.prompt[ask.num_source :], base.eos_token_ids, size),
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output together."""
        return len(self.prompt) + len(self.output)

    @property
    def num_written(self) -> int:
        """Those of them, but for what an encoder reads; keys and values of an adapter go before."""
        return self.num_tokens - self.num_source + (self.num_fillable if self.num_source else 0)

    @property
    def num_uncomputed(self) -> int:
        """Tokens that the model has not seen yet: 1 in decode, more in prefill."""
        return self.num_tokens - self.num_computed

    @property
    def digest(self) -> str | None:
        """Identity of its adapter; None for the base model."""
        return self.adapter.digest if self.adapter else None

    @property
    def task(self) -> Task | None:
        """What the head of its adapter reads; None where none does."""
        return self.adapter.task if self.adapter and self.pooling is None else None

    @property
    def is_read(self) -> bool:
        """Whether hidden states of its prompt are what is wanted."""
        return self.task is not None or self.pooling is not None

    @property
    def continues(self) -> bool:
        """Whether its prompt is continued; else it ends with it."""
        return not self.is_read and self.sampling.max_tokens > 0

    @property
    def may_draft(self) -> bool:
        """Whether several of its tokens can be chosen in a step."""
        return self.continues and (self.sampling.form is None or self.shape.foresees)

    @property
    def tells_prompt(self) -> bool:
        """Whether log-probabilities of its prompt are still to be told."""
        return self.num_told < len(self.prompt)

    @property
    def num_skippable(self) -> int:
        """Tokens at its beginning that need not be computed if their keys and values are there."""
        if self.reads_all:  # the hidden states of all of them are needed
            return 0
        # At least one token has to be computed, to choose the next one.
        most = self.num_tokens - 1
        return min(self.num_told, most) if self.tells_prompt else most

    @property
    def reads_all(self) -> bool:
        """Whether the hidden state of every token is read."""
        if self.task is None:
            return self.pooling is Pooling.MEAN
        return self.is_whole or self.task.reads_all

    @property
    def num_untold(self) -> int:
        """Virtual tokens of which nothing is told, where every token is read.

        What reads a text as a whole reads those with it of which there are hidden states.
        """
        if self.task is not None and self.task.reads_all:
            return self.num_virtual
        return self.num_fillable

    @property
    def own_vocab_size(self) -> int:
        """Tokens that the base has with its adapter; 0 if as many as ever."""
        return self.adapter.vocab_size if self.adapter else 0

    def uncut(self, start: int, num_tokens: int) -> int:
        """Return how many tokens from `start` on are one chunk, if there is room for `num_tokens`.

        They may be fewer, or one image more; of a text that is read as a whole, all.
        """
        if self.is_whole:
            return self.num_tokens - start
        if self.view is None or not self.view.is_whole:
            return num_tokens
        for picture in self.pictures:
            if picture.start < start + num_tokens < picture.end:
                end = picture.start if picture.start > start else picture.end
                return end - start
        return num_tokens

    def tokens(self, start: int, end: int) -> list[int]:
        """Return the tokens of positions `start` to `end`, across prompt and output."""
        split = len(self.prompt)
        if end <= split:
            return self.prompt[start:end]
        return self.prompt[start:split] + self.output[max(0, start - split) : end - split]
