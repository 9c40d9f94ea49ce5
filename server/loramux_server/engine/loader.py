"""Loading adapters: from a package to host memory, and from there to rank rows."""

from loramux_adapters import PackageError
from loramux_server.engine.team import Team
from loramux_server.lora.edits import Edits
from loramux_server.lora.mix import load_source
from loramux_server.lora.packed import PackedAdapter, take_seals
from loramux_server.lora.shard import UNSHARDED, shard_adapter
from loramux_server.lora.slab import Slab
from loramux_server.models.base_layers import BaseLayers
from loramux_server.models.base_model import BaseModel
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.weight_format import StorageFormat


class AdapterLoader:
    """Loads adapters for a model, or for this process's shard of it."""

    def __init__(
        self,
        model: BaseModel,
        slab: Slab,
        storage_format: StorageFormat,
        *,
        is_deterministic: bool = False,
    ) -> None:
        """Prepare to load into `slab`.

        Args:
            model: The base model.
            slab: Rank rows.
            storage_format: Storage format of adapters.
            is_deterministic: Refuse adapters that make a step take another code path: other rows
                would differ in the last bits.
        """
        self._is_deterministic = is_deterministic
        self._base = BaseLayers(model)
        self._device = model.device
        self._splits = [group.split for group in model.groups]
        self._shard = model.shard
        self._slab = slab
        self._storage_format = storage_format

    def load(self, source: AdapterSource) -> PackedAdapter:
        """Read an adapter into host memory, unsharded.

        Raises:
            DamagedError: A file of it is missing, or is not what was registered.
            PackageError: It does not fit the base model, cannot be mixed, or is not served here.
        """
        is_unsharded = self._shard == UNSHARDED
        place = self._slab.pack if is_unsharded and self._slab.packs else None
        with self._slab.on_load_stream():
            packed = load_source(source, self._base, self._storage_format, place)
        if self._is_deterministic and packed.edits and packed.edits.changes_layers:
            raise PackageError(
                "the server is deterministic, and supports low-rank updates only",
                "UNSUPPORTED_ADAPTER_FEATURE",
            )
        if is_unsharded:
            return packed
        # It was registered while one process held the whole model.
        if packed.edits and (packed.edits.changes_layers or packed.edits.virtual):
            raise PackageError(
                "it has more than low-rank updates, the only ones supported with tensor_parallel "
                "above 1",
                "UNSUPPORTED_ADAPTER_FEATURE",
            )
        return packed

    def write(self, source: AdapterSource, row: int, adapter: PackedAdapter) -> Edits | None:
        """Copy this process's shard of `adapter`, read from `source`, to rows from `row` on.

        Returns:
            Its edits, which are not in rank rows, on the device.
        """
        del source
        if self._shard != UNSHARDED:
            adapter = self._slab.pack(shard_adapter(adapter, self._splits, self._shard))
        self._slab.write(row, adapter)
        return adapter.edits and adapter.edits.to(self._device)

    def take_seals(self) -> dict[str, str]:
        """Return, once, the seals that loads computed: digest -> seal."""
        return take_seals()


class TeamLoader:
    """Loads adapters on all processes of tensor parallelism.

    Only the leader keeps an adapter in host memory, unsharded. Followers read its file when it is
    copied to the device.
    """

    def __init__(self, loader: AdapterLoader, team: Team) -> None:
        self._team = team
        self._loader = loader

    def load(self, source: AdapterSource) -> PackedAdapter:
        """Read an adapter into host memory; see `AdapterLoader.load`."""
        return self._loader.load(source)

    def write(self, source: AdapterSource, row: int, adapter: PackedAdapter) -> Edits | None:
        """Copy `adapter`, read from `source`, to rows of every process from `row` on.

        Raises:
            ExplainedError: A follower cannot load it.
        """
        with self._team.writing(source, row):
            return self._loader.write(source, row, adapter)

    def take_seals(self) -> dict[str, str]:
        """Return, once, the seals that loads computed: digest -> seal."""
        return self._loader.take_seals()
