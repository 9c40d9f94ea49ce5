"""What our own server is measured on: a base model, adapters and requests for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import load, server
from benchmarks.fixture import TARGETS, Shape, make_adapters
from loramux.bench import Planned, parse_lengths


@dataclass(frozen=True, slots=True)
class AdapterSet:
    """Adapters of one kind, each with weights of its own."""

    count: int
    ranks: tuple[int, ...] = (16,)
    """Taken in turn."""
    targets: tuple[str, ...] = TARGETS
    use_dora: bool = False
    num_tokens: int = 0
    """Tokens that each has trained."""
    num_saved: int = 0
    """How many of them, from the first, have embeddings and an output layer of their own."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        ranks, kind = "-".join(map(str, self.ranks)), "-dora" if self.use_dora else ""
        kind += f"-with-{self.num_tokens}-tokens" if self.num_tokens else ""
        kind += f"-{self.num_saved}-saved" if self.num_saved else ""
        return f"{self.count}{kind}-of-rank-{ranks}-on-{len(self.targets)}"


def small_adapters(count: int) -> AdapterSet:
    """Return the kind of which thousands fit a disk: 0.2 MB each on SmolLM2-135M."""
    return AdapterSet(count, (1,), ("q_proj", "v_proj"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A base model and the sizes of a measurement."""

    folder: Path
    """For everything that is made."""
    base: Path
    shape: Shape
    prompt: str = "32:256"
    """Tokens of the prompts: N or LOW:HIGH."""
    tokens: int = 64
    """Output tokens of each request."""
    per_slot: int = 2
    """Requests of a run for each one under way."""
    repeats: int = 3

    def names(self, adapters: AdapterSet) -> list[str]:
        """Return the names of `adapters`, which are made unless they were before."""
        folder = self.folder_of(adapters)
        if folder.exists():
            return sorted(path.name for path in folder.iterdir())
        return make_adapters(
            folder, self.shape, adapters.ranks, adapters.count, targets=adapters.targets,
            use_dora=adapters.use_dora, num_tokens=adapters.num_tokens,
            num_saved=adapters.num_saved,
        )  # fmt: skip

    def folder_of(self, adapters: AdapterSet) -> Path:
        """Return the folder of `adapters`."""
        return self.folder / adapters.name / "adapters"

    def server_folder(self, adapters: AdapterSet, place: str = "server") -> Path:
        """Return the folder of the server that serves `adapters`, its store in it."""
        return self.folder / adapters.name / place

    @contextmanager
    def serving(
        self, adapters: AdapterSet, *arguments: str, place: str = "server"
    ) -> Iterator[server.Running]:
        """Serve `adapters` for the block; two servers at once need a `place` each."""
        self.names(adapters)
        # Virtual: memory is taken when an adapter is written there.
        memory = ("--adapter-memory", "8G", "--host-adapter-memory", "1G")
        with server.running(
            self.server_folder(adapters, place), self.base,
            "--adapters", str(self.folder_of(adapters)), *memory, *arguments,
        ) as found:  # fmt: skip
            yield found

    def requests(
        self,
        popularity: str,
        adapters: list[str],
        concurrency: int,
        seed: int,
        prompt: str | None = None,
    ) -> list[Planned]:
        """Return the requests of one run."""
        return load.plan(
            max(self.per_slot * concurrency, 4), popularity=popularity, adapters=adapters,
            prompt=parse_lengths(prompt or self.prompt), tokens=self.tokens,
            vocab_size=self.shape.vocab, seed=seed,
        )  # fmt: skip
