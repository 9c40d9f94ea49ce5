"""The setup of measurements of our own server: a base model, adapters and requests for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import load, server
from benchmarks.fixture import TARGETS, Shape, make_adapters
from loramux.bench import Planned, parse_lengths


@dataclass(frozen=True, slots=True)
class AdapterSet:
    """Adapters of one kind, all with different weights."""

    count: int
    ranks: tuple[int, ...] = (16,)
    """Cycled through."""
    targets: tuple[str, ...] = TARGETS
    use_dora: bool = False
    num_tokens: int = 0
    """Number of trained tokens of each."""
    num_saved: int = 0
    """Number of adapters, from the first, with their own embeddings and output layer."""

    @property
    def name(self) -> str:
        """Name of their folder."""
        ranks, kind = "-".join(map(str, self.ranks)), "-dora" if self.use_dora else ""
        kind += f"-with-{self.num_tokens}-tokens" if self.num_tokens else ""
        kind += f"-{self.num_saved}-saved" if self.num_saved else ""
        return f"{self.count}{kind}-of-rank-{ranks}-on-{len(self.targets)}"


def small_adapters(count: int) -> AdapterSet:
    """Return adapters so small that thousands fit on a disk: 0.2 MB each on SmolLM2-135M."""
    return AdapterSet(count, (1,), ("q_proj", "v_proj"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A base model and the sizes of a measurement."""

    folder: Path
    """For all generated files."""
    base: Path
    shape: Shape
    prompt: str = "32:256"
    """Prompt length in tokens: N or LOW:HIGH."""
    tokens: int = 64
    """Output tokens of each request."""
    per_slot: int = 2
    """Requests per run, divided by the concurrency."""
    repeats: int = 3

    def names(self, adapters: AdapterSet) -> list[str]:
        """Return the names of `adapters`, which are generated if missing."""
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
        """Return the folder of the server of `adapters`, which contains its store."""
        return self.folder / adapters.name / place

    @contextmanager
    def serving(
        self, adapters: AdapterSet, *arguments: str, place: str = "server"
    ) -> Iterator[server.Running]:
        """Serve `adapters` for the block; concurrent servers need a different `place` each."""
        self.names(adapters)
        # Virtual: memory is committed when an adapter is written there.
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
