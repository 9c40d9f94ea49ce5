"""The benchmarks of a GPU run where there is none; peers that they load are written here."""

import importlib.util
import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

if torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
    pytest.skip("these are for Triton's interpreter", allow_module_level=True)

from benchmarks.gpu import check, end_to_end, kernels, peer_kernels, tune
from benchmarks.gpu.peer_kernels import Name
from benchmarks.gpu.record import Record
from loramux_server.kernels.gpu.decode_attention import DecodeBlocks
from loramux_server.kernels.gpu.plan import Plan

VLLM = {
    "__init__.py": "raise ImportError('compiled for CUDA')",
    "lora/ops/triton_ops/__init__.py": "raise ImportError('compiled for CUDA')",
    "lora/ops/triton_ops/utils.py": """
        from vllm.logger import init_logger
        from vllm.platforms import current_platform
        from vllm.utils.torch_utils import direct_register_custom_op

        _LORA_A_PTR_DICT = {}
        init_logger(__name__).info_once("on a GPU: %s", current_platform.is_cuda())
        """,
    "lora/ops/triton_ops/lora_kernel_metadata.py": """
        class LoRAKernelMeta:
            @staticmethod
            def make(max_loras, max_num_tokens, device):
                return LoRAKernelMeta()

            def prepare_tensors(self, token_lora_mapping):
                self.mapping = token_lora_mapping

            def meta_args(self, token_nums, specialize_active_lora):
                assert specialize_active_lora
                return (self.mapping[:token_nums], *[None] * 6)
        """,
    "lora/ops/triton_ops/lora_shrink_op.py": """
        from vllm.triton_utils import tl, triton
        from vllm.lora.ops.triton_ops.utils import direct_register_custom_op

        def _lora_shrink(inputs, lora_a_weights, output_tensor, token_lora_mapping, a, b, c, d, e,
                         f, scaling):
            for out, weight in zip(output_tensor, lora_a_weights):
                for token, lora in enumerate(token_lora_mapping.tolist()):
                    out[token] = weight[lora].float() @ inputs[token].float() * scaling

        try:
            direct_register_custom_op(op_name="lora_shrink", op_func=_lora_shrink)
            lora_shrink = None
        except AttributeError:
            lora_shrink = _lora_shrink
        """,
    "lora/ops/triton_ops/lora_expand_op.py": """
        FACTOR = 1

        def lora_expand(inputs, lora_b_weights, output_tensor, token_lora_mapping, a, b, c, d, e,
                        f, offset_start=0, add_inputs=False):
            assert add_inputs
            start = offset_start
            for h, weight in zip(inputs, lora_b_weights):
                end = start + weight.shape[1]
                for token, lora in enumerate(token_lora_mapping.tolist()):
                    output_tensor[token, start:end] += FACTOR * (weight[lora].float() @ h[token])
                start = end
        """,
}
PUNICA = {
    "__init__.py": "raise ImportError('models for an older transformers')",
    "ops/__init__.py": """
        import ctypes

        import torch

        def _product(y, x, pointers, s, is_transposed):
            narrow, wide = sorted((x.shape[1], y.shape[1]))
            for i, address in enumerate(pointers.tolist()):
                memory = (ctypes.c_char * (2 * narrow * wide)).from_address(address)
                weight = torch.frombuffer(memory, dtype=x.dtype).view(narrow, wide).float()
                rows = slice(int(s[i]), int(s[i + 1]))
                y[rows] += (x[rows].float() @ (weight.T if is_transposed else weight)).to(y.dtype)

        def sgmv(y, x, w_ptr, s, layer_idx):
            assert s.dtype == torch.int32 and w_ptr.dtype == torch.int64
            _product(y, x, w_ptr, s, True)

        def sgmv_cutlass(y, x, w_ptr, s, layer_idx):
            _product(y, x, w_ptr, s, False)

        def add_lora_sgmv_custom_cutlass(y, x, wa_ptr, wb_ptr, s, layer_idx, lora_rank):
            v = torch.zeros(len(x), lora_rank, dtype=x.dtype)
            _product(v, x, wa_ptr, s, True)
            _product(y, v, wb_ptr, s, False)
        """,
}


@pytest.fixture(autouse=True)
def peers_are_forgotten() -> Iterator[None]:
    yield
    for name in list(sys.modules):
        if name.split(".")[0] in ("vllm", "punica"):
            del sys.modules[name]


def checkout(folder: Path, package: str, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder


def compared(path: Path, peer: Name, group: str = "o", batch: int = 1) -> dict[str, Any]:
    output = path / "o.json"
    peer_kernels.main(path, peer, shape="tiny", batch=[batch], group=[group], output=output)
    record: dict[str, Any] = json.loads(output.read_text())
    return record


def test_the_operators_of_vllm_are_timed_without_its_package(tmp_path: Path) -> None:
    folder = checkout(tmp_path, "vllm", VLLM)
    metadata = folder / "vllm-1.2.3.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 1.2.3\n")
    record = compared(folder, Name.VLLM, "qkv", batch=2)
    assert record["peer"] == {"name": "vllm", "version": "1.2.3", "commit": None}
    assert [(row["adapters"], row["ranks"], row["operator"]) for row in record["rows"]] == [
        (adapters, ranks, operator)
        for adapters, ranks in ((1, "16"), (2, "16"), (2, "8..16"))
        for operator in ("shrink", "expand", "both")
    ]
    assert all(row["ratio"] > 0 and row["problem"] is None for row in record["rows"])


def test_the_operators_of_punica_read_weights_where_they_lie(tmp_path: Path) -> None:
    folder = checkout(tmp_path, "src/punica", PUNICA)
    record = compared(folder, Name.PUNICA, "gate_up", batch=2)
    assert all(row["ratio"] > 0 and row["problem"] is None for row in record["rows"])


def test_a_peer_that_gives_something_else_is_not_timed(tmp_path: Path) -> None:
    wrong = "lora/ops/triton_ops/lora_expand_op.py"
    files = VLLM | {wrong: VLLM[wrong].replace("FACTOR = 1", "FACTOR = 1.01")}
    rows = compared(checkout(tmp_path, "vllm", files), Name.VLLM)["rows"]
    assert [row["peer_microseconds"] is not None for row in rows] == [True, False, False]
    assert rows[1]["problem"].endswith("away from float64, more than 0.002")
    assert all(row["own_microseconds"] for row in rows)


def test_a_peer_that_raises_is_reported(tmp_path: Path) -> None:
    wrong = "lora/ops/triton_ops/lora_expand_op.py"
    files = VLLM | {wrong: VLLM[wrong].replace("assert add_inputs", "raise RuntimeError('no')")}
    rows = compared(checkout(tmp_path, "vllm", files), Name.VLLM)["rows"]
    assert {row["problem"] for row in rows} == {"peer: RuntimeError: no"}


@pytest.mark.parametrize("peer", list(Name))
def test_a_folder_without_the_peer_is_refused(tmp_path: Path, peer: Name) -> None:
    with pytest.raises(SystemExit, match=rf"no .*{peer}.* under .*: give a checkout"):
        compared(tmp_path, peer)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # the interpreter's, of silu
def test_kernels_are_measured_against_their_floors(tmp_path: Path) -> None:
    output = tmp_path / "o.json"
    kernels.main(shape="tiny", batch=[1], rows=[0, 8], rank=8, context=[16], output=output)
    record = json.loads(output.read_text())
    experiments = {row["experiment"] for row in record["rows"]}
    parts = {"matmul", "launch", "attention", "kernels", "draws"}
    assert experiments == parts == record["seconds"].keys()
    assert all(row["microseconds"] > 0 for row in record["rows"])
    assert record["complete"]


def test_what_is_checked_on_a_gpu_is_there() -> None:
    # pytest runs nothing at all if one of its arguments is not.
    root = Path(check.__file__).parents[2]
    assert all(list((root / folder).glob("test_*.py")) for folder in check.TESTS)


def test_tests_are_counted_as_they_end(tmp_path: Path) -> None:
    path, output = tmp_path / "test_counted.py", tmp_path / "o.json"
    path.write_text(
        textwrap.dedent("""
            import json, pytest
            from pathlib import Path

            def test_good(request):
                running = json.loads(Path(__file__).with_name("o.json").read_text())
                assert running["tests"]["running"] == [request.node.nodeid]
            def test_bad(): assert False
            def test_elsewhere(): pytest.skip("no device")
            @pytest.fixture
            def broken(): raise ValueError
            def test_not_begun(broken): pass
            """)
    )
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_default_fixture_loop_scope = function\n"
    )
    check.Tests(record := Record(output, ["tests"])).run([path], workers=0)
    record.write()
    tests = json.loads(output.read_text())["tests"]
    assert (tests["run"], tests["skipped"], tests["running"]) == (2, 1, [])
    assert [name.partition("::")[2] for name in tests["failures"]] == ["test_bad", "test_not_begun"]


def test_what_is_tuned_is_written_as_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "_CONTEXTS", (16,))
    monkeypatch.setitem(tune._CHOICES, "decode_attention", {"context": (32, 64)})
    monkeypatch.setitem(tune._CHOICES, "draw", {"v": (64,)})
    for choices in (tune._CHOICES, tune._BASE_CHOICES):
        monkeypatch.setitem(choices, "rope_write", {"heads": (1, 2), "num_warps": (1, 2)})
    plans, output = tmp_path / "plans.json", tmp_path / "o.json"
    plans.write_text(json.dumps({"default": {"max_spare_rows": 1}}))
    tune.main(
        shape="tiny", batch=[1, 8], chunk=[4], only=["rope_write", "decode_attention", "draw"],
        tile=[1], plans=plans, output=output,
    )  # fmt: skip
    entries = json.loads(plans.read_text())
    assert entries["default"] == {"max_spare_rows": 1}
    plan = Plan.parse(entries["cpu"])
    record = json.loads(output.read_text())
    assert record["complete"]
    blocks = {row["unit"]: row["blocks"] for row in record["rows"]}
    assert blocks["rope_write 1"] == asdict(plan.configs[1].rope_write)
    assert blocks["rope_write 1 bare"] == asdict(plan.base_configs[1].rope_write)
    assert blocks["draw"] == (asdict(plan.draw) if plan.draw else {})
    assert "decode_attention 256" not in blocks  # no step was so large
    assert plan.decode_attention[256] == DecodeBlocks()
    for most in (4, 16):
        assert blocks[f"decode_attention {most}"] == asdict(plan.decode_attention[most])


def test_attention_is_tuned_from_a_plan_that_distinguishes_other_numbers_of_requests() -> None:
    small, large = DecodeBlocks(context=32), DecodeBlocks(context=128)
    plan = replace(Plan.of(torch.device("cpu")), decode_attention={8: small, 256: large})
    begun = tune.rekeyed(plan)
    assert begun.decode_attention == {4: small, 16: large, 256: large}
    for unit in tune.units(["decode_attention"], [1]):
        cuts = {str(found.attention_of(unit.size)) for found in unit.candidates(begun)}
        assert len(cuts) == len(list(unit.candidates(begun)))


def test_the_engine_is_measured_against_its_goals(tmp_path: Path) -> None:
    output, plot = tmp_path / "o.json", tmp_path / "p.png"
    end_to_end.main(
        shape="tiny", context=16, batch=1, large_batch=2, prompt=4, steps=1, only_own=True,
        plot=plot, output=output,
    )  # fmt: skip
    record = json.loads(output.read_text())
    assert {goal["number"] for goal in record["goals"]} == {*range(1, 10), 12, 13, 14, 19, 20, 21}
    assert record["dora_adapters"] == 1
    assert list(record["load_parts"]) == [
        "read, compared by the digest", "read, compared by the seal", "header parsed",
    ]  # fmt: skip
    assert all(milliseconds > 0 for milliseconds in record["load_parts"].values())
    assert {"requests": 1, "adapters": 0, "is_drawn": True}.items() <= max(
        record["steps"], key=lambda step: step["is_drawn"]
    ).items()
    assert list(record["tokens_per_second_by_adapters"]) == ["loramux", "loramux, base only"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert record["complete"] and not record["errors"]


def test_a_goal_that_fails_does_not_keep_others_from_being_measured(tmp_path: Path) -> None:
    output = tmp_path / "o.json"
    with pytest.raises(SystemExit):
        end_to_end.main(
            shape="tiny", context=16, batch=1, large_batch=1, steps=1, output=output,
            prompt=4000, only=["9", "2", "peft"],
        )  # fmt: skip
    record = json.loads(output.read_text())
    assert [goal["number"] for goal in record["goals"]] == [2]
    assert list(record["errors"]) == ["9"] and "CONTEXT" in record["errors"]["9"]
    assert list(record["tokens_per_second_by_adapters"]) == ["PEFT"]
    assert not record["missing"] and not record["complete"]


def test_a_goal_that_there_is_not_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match="--only 10 is none of 12, 3"):
        end_to_end.main(shape="tiny", only=["10"])
