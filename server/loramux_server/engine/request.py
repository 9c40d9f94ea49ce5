"""A request to the engine: one completion to generate, or one text to read."""

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
from loramux_server.kernels.encoder_text import Seq2SeqState
from loramux_server.models.vision.prompt_images import PromptImages
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.messages import Submit
from loramux_server.wire.sampling import Sampling

PLACEHOLDER = 0
"""Token id at the positions of virtual tokens."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Where an image is in the prompt, and which one."""

    start: int
    """Position of its first token."""
    end: int
    digest: bytes


@dataclass(slots=True, eq=False)
class Request:
    """A prompt, the tokens generated so far, and what it holds while it runs."""

    request_id: int
    prompt: list[int]
    """The prompt of the caller, after a placeholder for each virtual token of the adapter."""
    adapter: AdapterSource | None
    """None for the base model, and if the prompt lacks the invocation tokens of an aLoRA."""
    sampling: Sampling
    tenant: str = ""
    """Its owner: only requests of the same tenant share KV blocks."""
    cache_salt: str = ""
    """Only requests of the tenant with the same salt share KV blocks with it."""
    active_from: int = 0
    """Position of the first token that the adapter is applied to."""
    pooling: Pooling | None = None
    """How its hidden states are pooled, if it is to be embedded."""
    prediction: Sequence[int] = ()
    """The expected output, for speculative decoding; it does not change the output."""
    goes_on: bool = False
    """Whether it continues a completion that was queued and counted before."""
    weight: int = 1
    """Its tenant's weight in fair queueing."""
    priority: int = 0
    """Its position among the requests of its tenant: lower goes first."""
    arrival: float = 0.0
    """When it arrived, in seconds of the engine's clock."""
    deadline: float = math.inf
    """When it has to be finished, on the same clock."""
    second_from: int = 0
    """Position at which the second of two texts begins; 0 if there is none."""
    num_source: int = 0
    """Tokens at the beginning of its prompt that are the input of an encoder."""
    in_one_chunk: bool = False
    """Whether its text has to be computed in one chunk (bidirectional attention)."""
    seq2seq_state: Seq2SeqState = field(default_factory=Seq2SeqState)
    """What is kept of the encoder's output while it runs."""
    pictures: Sequence[Picture] = ()
    """The images in its prompt."""
    prompt_images: PromptImages | None = None
    """Their embeddings; None if there are no images, or they are not encoded yet."""
    counts: TokenCounts | None = None
    """Token counts for penalties and biases; None if its logits are used as they are."""
    output: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    """Its block table: the KV block of every `block_size` tokens, in order."""
    block_names: list[bytes] = field(default_factory=list)
    """Names of its full blocks, as far as computed; see `prefix.name_blocks`."""
    slots: StateSlots = field(default_factory=StateSlots)
    """Its state slots, if the model has recurrent layers."""
    num_named: int = 0
    """Blocks of its table that are in the prefix cache."""
    num_computed: int = 0
    """Tokens whose keys and values are in its blocks."""
    num_bypassed: int = 0
    """How often it was overtaken while it waited for its adapter; see `Bypass`."""
    has_started: bool = False
    """Whether it, or the completion that it continues, ever left the queue."""
    owes_prompt: bool = True
    """Whether its tenant is still to be charged for what it computes before its next token."""
    shape: Shape = field(default_factory=Shape)
    """The tokens allowed next, if its output is structured."""
    is_held: bool = False
    """Whether it cannot run before they are known."""
    gathered: Gathered = field(default_factory=Gathered)
    """The results of its chunks so far, if hidden states are its result."""
    num_logprobs_done: int = field(init=False)
    """Prompt tokens whose log-probabilities are done; all of them if none are wanted."""
    num_virtual: int = field(init=False)
    """Virtual tokens of its adapter before the prompt."""

    def __post_init__(self) -> None:
        self.num_virtual = self.adapter.virtual_tokens if self.adapter else 0
        if self.num_virtual:
            self.prompt = [PLACEHOLDER] * self.num_virtual + self.prompt
            self.second_from += self.num_virtual if self.second_from else 0
            self.num_source += self.num_virtual if self.num_source else 0
        is_wanted = self.sampling.num_prompt_logprobs is not None
        self.num_logprobs_done = self.num_virtual if is_wanted else len(self.prompt)

    @property
    def num_fillable(self) -> int:
        """Virtual tokens whose keys and values come with the adapter (prefix tuning)."""
        return self.num_virtual if self.adapter and self.adapter.has_cache else 0

    @staticmethod
    def of(message: Submit, base: Base, arrival: float) -> "Request":
        """Return the request that `message` asks for.

        Args:
            message: The message of the frontend.
            base: The base model.
            arrival: When it arrived, in seconds of the engine's clock.
        """
        ask = message.ask
        source = ask.adapter and ask.adapter.as_stored(base.storage_format)
        sampling, size = ask.sampling, (source and source.vocab_size) or base.vocab_size
        if size and sampling.top_k >= size:
            # It excludes no token, and must not depend on the vocabularies of other adapters.
            sampling = msgspec.structs.replace(sampling, top_k=0)
        active_from: int | None = 0
        if source and source.invocation:
            num_prompt = len(ask.prompt) - ask.num_generated
            active_from = last_place(ask.prompt[:num_prompt], source.invocation)
        return Request(
            message.request_id,
            ask.prompt,
            None if active_from is None else source,
            sampling,
            ask.tenant,
            cache_salt=ask.cache_salt,
            active_from=active_from or 0,
            pooling=ask.pooling,
            prediction=ask.prediction,
            goes_on=ask.num_generated > 0,
            has_started=ask.num_generated > 0,
            weight=message.weight,
            priority=message.priority,
            second_from=ask.second_from,
            num_source=ask.num_source,
            in_one_chunk=base.has_encoder,
            pictures=[
                Picture(each.start, each.start + each.length, each.image.digest)
                for each in ask.images
            ],
            arrival=arrival,
            deadline=math.inf if message.timeout is None else arrival + message.timeout,
            # Penalties do not count the input of an encoder.
            counts=counts_of(sampling, ask.prompt[ask.num_source :], base.eos_token_ids, size),
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output together."""
        return len(self.prompt) + len(self.output)

    @property
    def num_written(self) -> int:
        """Those of them without the input of an encoder, but with prefix-tuning tokens."""
        return self.num_tokens - self.num_source + (self.num_fillable if self.num_source else 0)

    @property
    def num_uncomputed(self) -> int:
        """Tokens that are not computed yet: 1 in decode, more in prefill."""
        return self.num_tokens - self.num_computed

    @property
    def digest(self) -> str | None:
        """Identity of its adapter; None for the base model."""
        return self.adapter.digest if self.adapter else None

    @property
    def task(self) -> Task | None:
        """The task of its adapter's head; None if there is no head, or it is embedded."""
        return self.adapter.task if self.adapter and self.pooling is None else None

    @property
    def is_read(self) -> bool:
        """Whether its result is computed from hidden states of its prompt."""
        return self.task is not None or self.pooling is not None

    @property
    def continues(self) -> bool:
        """Whether tokens are generated; otherwise it ends with its prompt."""
        return not self.is_read and self.sampling.max_tokens > 0

    @property
    def may_draft(self) -> bool:
        """Whether speculative decoding is possible."""
        return self.continues and (self.sampling.form is None or self.shape.supports_drafts)

    @property
    def returns_prompt_logprobs(self) -> bool:
        """Whether log-probabilities of its prompt are still to be returned."""
        return self.num_logprobs_done < len(self.prompt)

    @property
    def num_skippable(self) -> int:
        """Tokens at its beginning that need not be computed if they are in the prefix cache."""
        if self.reads_all:  # all hidden states are needed
            return 0
        # At least one token has to be computed to choose the next one.
        most = self.num_tokens - 1
        return min(self.num_logprobs_done, most) if self.returns_prompt_logprobs else most

    @property
    def reads_all(self) -> bool:
        """Whether its result needs the hidden state of every token."""
        if self.task is None:
            return self.pooling is Pooling.MEAN
        return self.in_one_chunk or self.task.is_per_token

    @property
    def num_unreported(self) -> int:
        """Virtual tokens that have no place in its result, if that needs every token.

        A model that encodes a text as a whole includes those that have hidden states.
        """
        if self.task is not None and self.task.is_per_token:
            return self.num_virtual
        return self.num_fillable

    @property
    def own_vocab_size(self) -> int:
        """Vocabulary size with its adapter; 0 if the adapter does not change it."""
        return self.adapter.vocab_size if self.adapter else 0

    def chunk_length(self, start: int, num_tokens: int) -> int:
        """Return the length of a chunk from `start` on, if `num_tokens` are wanted.

        A chunk that must not split an image ends before it, or after it if it begins with it. A
        text that is encoded as a whole is one chunk.
        """
        if self.in_one_chunk:
            return self.num_tokens - start
        if self.prompt_images is None or not self.prompt_images.is_bidirectional:
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
