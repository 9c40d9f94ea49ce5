"""Packages that are nearly right for a base with recurrent layers and experts, taken in as uploads.

What is refused has a reason; what is accepted is loaded, and serves a request.
"""

import io
import math
import random
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from loramux_adapters import PackageError
from loramux_adapters.manifest import MANIFEST_KEY, parse_manifest
from loramux_adapters.stacks import stacked
from loramux_adapters.tensorfile import ITEM_BYTES, read_header
from loramux_server.store.check import check_package
from loramux_server.store.served_base import ServedBase
from tests.adapters.files import Tensors, package
from tests.fuzz.inputs import mangled
from tests.fuzz.target import FindingError, Target
from tests.parity.test_experts import lora, save_old
from tests.parity.test_methods import save
from tests.soak.bases import EXPERTS, HYBRID, RECURRENT
from tests.support.adapters import pack_source, source_of
from tests.support.engine import Harness
from tests.support.models import tiny_model

PROMPT = [1, 5, 7, 9, 11]
KINDS: dict[str, dict[str, Any]] = {
    "recurrent": {"target_modules": [*RECURRENT, "o_proj"]},
    "experts": {"target_parameters": EXPERTS, "target_modules": ["in_proj_ba"]},
    "router": {"target_parameters": ["gate.weight"], "target_modules": []},
    "weighted": {"target_modules": RECURRENT, "use_dora": True},
    "whole": {"target_modules": ["out_proj"], "modules_to_save": ["in_proj_ba"]},
}
"""Adapter -> its config, as PEFT takes it."""
PIECES = [
    "model.layers.0", "model.layers.1", "model.layers.2", "linear_attn", "self_attn", "mlp",
    "experts", "experts.0", "experts.3", "experts.4", "experts.0-3", "experts.0-1_3", "experts.1_0",
    "experts.0-999999999", "experts.0_2-3", "in_proj_qkvz", "in_proj_ba", "out_proj", "conv1d",
    "A_log", "dt_bias", "norm", "q_proj", "gate", "gate_proj", "up_proj", "down_proj", "base_layer",
    "shared_expert", "shared_expert_gate", "gate_up_proj", "lora_A", "lora_B", "weight", "",
]  # fmt: skip
"""Parts of names of tensors."""
FIELDS: dict[str, list[Any]] = {
    "target_parameters": [None, [], ["gate.weight"], EXPERTS, ["down_proj"], ["A_log"], ["norm"]],
    "target_modules": [None, [], RECURRENT, "all-linear", ["conv1d"], ["gate"], "(.*)+x"],
    "rank_pattern": [{}, {"down_proj": 1}, {"gate_up_proj": 0}, {"in_proj_ba": 3}, {"(": 1}],
    "alpha_pattern": [{}, {"down_proj": 1e30}, {"out_proj": -1}],
    "modules_to_save": [None, ["linear_attn"], ["gate"], ["conv1d"], ["in_proj_ba"]],
    "r": [1, 2, 3, 4, 0, -1, 1 << 31],
    "use_dora": [True, False], "use_rslora": [True, False], "bias": ["none", "all", "lora_only"],
    "layers_to_transform": [None, 0, [0], [7]], "fan_in_fan_out": [True, False],
    "peft_type": ["LORA", "IA3", "PROMPT_TUNING", "PREFIX_TUNING", "LOKR", "OFT"],
}  # fmt: skip
"""Field of a config -> what may stand there."""


@dataclass(frozen=True)
class Saved:
    """What a package holds, of which others are made."""

    tensors: Tensors
    config: dict[str, Any]


@contextmanager
def serving() -> Iterator[tuple[Harness, list[Saved]]]:
    """Yield an engine of the base, and adapters that fit it."""
    model = tiny_model(HYBRID)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        saved = [
            save(model, lora(r=2, **config), folder / kind, seed)
            for seed, (kind, config) in enumerate(KINDS.items())
        ]
        parts = ["gate_proj", "up_proj", "down_proj"]
        saved.append(save_old("qwen3-moe", folder / "old", parts, model.dtype))
        found = [_saved(each, folder / f"{each.name}.package") for each in saved]
        harness = Harness(
            model, kernels="cpu", rows=512, num_blocks=64, host_adapter_memory=4 << 20
        )
        yield harness, [*found, _in_stacks(found[-1])]


def package_target(harness: Harness, saved: list[Saved]) -> Target:
    """Return what takes packages for the base of `harness`, nearly those that are `saved`."""
    base = ServedBase.of(harness.info, max_host_bytes=1 << 24)

    def attempt(raw: bytes) -> str:
        try:
            check_package(io.BytesIO(raw), len(raw), base)
        except PackageError as error:
            if not error.reason:
                raise FindingError("a refusal without a reason") from error
            return error.reason
        with tempfile.NamedTemporaryFile() as file:
            file.write(raw)
            file.flush()
            number = harness.submit(PROMPT, source_of(Path(file.name)), max_tokens=2)
            harness.run()
        harness.reports.clear()
        failure = harness.failures.get(number)
        # Weights that overflow are the adapter's own.
        if failure and failure.reason != "ADAPTER_NOT_FINITE":
            raise FindingError(f"accepted, and then {failure.reason}: {failure.message}")
        return failure.reason if failure else "served"

    return Target("hybrid packages", packages(saved), attempt)


def packages(saved: list[Saved]) -> st.SearchStrategy[bytes]:
    """Each is one of `saved` with up to three changes."""

    @st.composite
    def changed(draw: st.DrawFn) -> bytes:
        chosen = saved[draw(st.integers(0, len(saved) - 1))]
        tensors, config = dict(chosen.tensors), dict(chosen.config)
        for _ in range(draw(st.integers(0, 3))):
            if draw(st.booleans()) and tensors:
                _change(draw, tensors)
            else:
                key = draw(st.sampled_from(sorted(FIELDS)))
                config[key] = draw(st.sampled_from(FIELDS[key]))
        is_mangled = draw(st.integers(0, 7)) == 0
        return package(tensors, draw(mangled(config)) if is_mangled else config)

    return changed()


def _change(draw: st.DrawFn, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    """Make one of `tensors` into another, give it another name, or take it away."""
    name = draw(st.sampled_from(sorted(tensors)))
    dtype, shape, raw = tensors[name]
    kind = draw(st.sampled_from(["name", "name", "shape", "shape", "dtype", "twice", "gone"]))
    if kind != "twice":
        del tensors[name]
    if kind in ("name", "twice"):
        pieces = name.split(".")
        place = draw(st.integers(0, len(pieces) - 1))
        pieces[place] = draw(st.sampled_from(PIECES))
        tensors[".".join(pieces)] = dtype, shape, raw
    elif kind == "shape":
        first, rest, last = shape[:1], shape[1:], shape[-1:]
        other = draw(st.sampled_from([
            shape[::-1], rest, [1, *shape], shape[:-1] + 2 * last, 2 * first + rest,
            [size + 1 for size in first] + rest, [2 * size for size in shape], [*rest, 0], [],
        ]))  # fmt: skip
        tensors[name] = dtype, other, _bytes(other, dtype)
    elif kind == "dtype":
        other_type = draw(st.sampled_from(sorted(ITEM_BYTES)))
        tensors[name] = other_type, shape, _bytes(shape, other_type)


def _bytes(shape: list[int], dtype: str) -> bytes:
    """Return numbers for a tensor, some of them perhaps NaN."""
    return random.Random(0).randbytes(math.prod(shape) * ITEM_BYTES[dtype])


def _saved(folder: Path, path: Path) -> Saved:
    pack_source(folder, path)
    raw = path.read_bytes()
    file = read_header(io.BytesIO(raw), len(raw))
    tensors = {
        each.name: (
            each.dtype,
            list(each.shape),
            raw[file.data_start + each.offset :][: each.num_bytes],
        )
        for each in file.tensors.values()
    }
    return Saved(tensors, dict(parse_manifest(file.metadata[MANIFEST_KEY]).peft_config))


def _in_stacks(alone: Saved) -> Saved:
    """Return the same as it is stored where there are too many tensors."""
    raw = package(alone.tensors, alone.config)
    file = read_header(io.BytesIO(raw), len(raw))
    form = stacked(file.tensors)
    tensors: Mapping[str, tuple[str, list[int], bytes]] = {
        each.name: (
            each.dtype,
            list(each.shape),
            b"".join(alone.tensors[part.name][2] for part in form.parts.get(each.name, (each,))),
        )
        for each in form.tensors.values()
    }
    return Saved(tensors, alone.config)
