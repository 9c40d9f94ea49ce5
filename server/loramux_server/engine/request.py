"""One completion on its way through the engine."""

from dataclasses import dataclass, field

from loramux_server.engine.messages import AdapterSource, Sampling


@dataclass(slots=True, eq=False)
class Request:
    """A prompt, the tokens made so far, and what it holds while it runs."""

    request_id: int
    prompt: list[int]
    adapter: AdapterSource | None
    sampling: Sampling
    tenant: str = ""
    """Whose it is: only requests of one tenant share KV blocks."""
    weight: int = 1
    """Its tenant's part of a busy engine, beside the weights of others."""
    arrival: float = 0.0
    """When it came, on the engine's clock."""
    output: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    """Its block table: the KV block of every `block_size` tokens, in order."""
    block_names: list[bytes] = field(default_factory=list)
    """Names of its full blocks, as far as they were needed; see `prefix.name_blocks`."""
    num_named: int = 0
    """Blocks of its table that others can find."""
    num_computed: int = 0
    """Tokens whose keys and values are in the blocks."""
    num_bypassed: int = 0
    """Later requests that started while this one waited for its adapter."""
    has_started: bool = False
    """Whether it ever left the queue."""

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output together."""
        return len(self.prompt) + len(self.output)

    @property
    def num_uncomputed(self) -> int:
        """Tokens that the model has not seen yet: 1 in decode, more in prefill."""
        return self.num_tokens - self.num_computed

    @property
    def digest(self) -> str | None:
        """Identity of its adapter; None for the base model."""
        return self.adapter.digest if self.adapter else None

    def tokens(self, start: int, end: int) -> list[int]:
        """Return the tokens of positions `start` to `end`, across prompt and output."""
        split = len(self.prompt)
        if end <= split:
            return self.prompt[start:end]
        return self.prompt[start:split] + self.output[max(0, start - split) : end - split]
