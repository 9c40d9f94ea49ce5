"""The whole engine with the kernels of a GPU, in Triton's interpreter where there is none."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from loramux_adapters.embedding import Pooling
from loramux_server.engine import graphs
from loramux_server.kernels.gpu.plan import Plan
from loramux_server.lora import extended_slab
from loramux_server.lora.affine import FACTOR, SHIFT, Affine, vectors_of
from loramux_server.lora.edits import Edits
from loramux_server.lora.extended_slab import ExtendedSlab
from loramux_server.lora.packed import LayerPlace, PackedAdapter, PackedLayer
from loramux_server.lora.slab import GroupShape, vectors
from loramux_server.models import decoder_model
from loramux_server.models.encoders.encoder_model import enable_padding
from loramux_server.models.loading import load_base_model
from loramux_server.store.served_base import ServedBase
from loramux_server.wire.weight_format import WeightFormat
from tests.parity.test_activated import cases as activated_cases
from tests.parity.test_classifiers import check_logits, texts
from tests.parity.test_drafts import ask
from tests.parity.test_encoders import texts as encoder_texts
from tests.parity.test_methods import cases as method_cases
from tests.parity.test_methods import save, vector_configs
from tests.parity.test_peft import LOGPROB_TOLERANCE, cases, check
from tests.support.adapters import Expected, pack_source, save_adapter, with_adapter
from tests.support.embedders import vector_of
from tests.support.encoder_models import save_encoder_base
from tests.support.engine import Harness
from tests.support.image_prompts import prompt_logprobs_of, show, vision_case
from tests.support.models import VOCAB, tiny_model
from tests.support.scored import check_prompt_logprobs, expected_logprobs

TOKENS = 2
pytestmark = pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"  # numpy in the interpreter, of rows that stand for no token
)


@pytest.fixture(autouse=True)
def single_precision(device: torch.device) -> None:
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(autouse=True)
def recorded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "PLAIN_RUNS", 0)


def harness_of(model: PreTrainedModel, device: torch.device, **config: Any) -> Harness:
    return Harness(copy.deepcopy(model).to(device), kernels="triton", **config)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "qwen3.5"])
def test_a_mixed_batch_equals_peft_alone(
    architecture: str, device: torch.device, tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    requests = cases(model, tmp_path, num_requests=8)
    # Prompts run in chunks, and seven adapters share the room of four.
    harness = harness_of(model, device, rows=40, num_blocks=60, max_batch_tokens=48, max_running=6)
    for case in requests:
        harness.submit(
            case.prompt, case.source, max_tokens=len(case.expected.tokens), num_logprobs=VOCAB
        )
    harness.run()
    # A GPU adds in another order than PEFT on a CPU does, and gemma2 makes more of it than others.
    tolerance = LOGPROB_TOLERANCE if device.type == "cpu" else 2e-4
    for request_id, case in enumerate(requests):
        check(harness, request_id, case, tolerance)
    assert harness.reports[-1].stats.device.evictions > 0
    assert max(report.batch.adapters for report in harness.reports if report.batch) > 1


def test_requests_of_one_adapter_go_on_together_where_layers_are_recurrent(
    device: torch.device, tmp_path: Path
) -> None:
    model = tiny_model("qwen3.5")
    source = next(case.source for case in cases(model, tmp_path, num_requests=8) if case.source)
    harness = harness_of(model, device, rows=40, num_blocks=120, max_running=6)

    def ask(count: int) -> list[list[int]]:
        asked = [harness.submit([5, 6, 7], source, max_tokens=4) for _ in range(count)]
        harness.run()
        return [harness.output(request_id) for request_id in asked]

    (alone,) = ask(1)
    assert ask(5) == [alone] * 5
    assert max(report.batch.requests for report in harness.reports if report.batch) == 5


def test_texts_that_an_encoder_reads_at_once_equal_peft_alone(
    device: torch.device, tmp_path: Path
) -> None:
    base = load_base_model(str(save_encoder_base("roberta", tmp_path)), device=str(device))
    assert base.encoder_runner is not None
    assert base.encoder_runner.is_given_tokens
    enable_padding(base.encoder_runner, base.check)
    assert base.encoder_runner.pads_texts
    harness = Harness(
        base, kernels="triton", rows=256, num_blocks=200, max_batch_tokens=400, max_running=16
    )
    wanted = {}
    for text in encoder_texts(base, tmp_path)[::3]:
        request_id = harness.submit(
            text.tokens, text.source, pooling=Pooling.MEAN, second_from=text.second_from
        )
        wanted[request_id] = vector_of(text.states, Pooling.MEAN, normalize=False)
    harness.run()
    for request_id, vector in wanted.items():
        found = harness.logits(request_id, len(vector))[0].cpu()
        torch.testing.assert_close(found, vector, rtol=0, atol=2e-4)
    batches = [report.batch for report in harness.reports if report.batch]
    assert any(batch.adapters > 1 and batch.requests > 2 for batch in batches)


def test_drafts_are_checked_as_peft_writes(device: torch.device, tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    requests = method_cases(model, tmp_path, vector_configs(model))[:5]
    harness = harness_of(model, device, rows=128, num_blocks=60, speculative_tokens=6)
    ask(harness, requests, None if device.type == "cpu" else 2e-4)


def test_an_adapter_begins_in_the_middle_of_a_chunk(device: torch.device, tmp_path: Path) -> None:
    model = tiny_model("llama")
    requests = activated_cases(model, tmp_path)[::7]
    harness = harness_of(model, device, rows=64, num_blocks=60, max_batch_tokens=200)
    for case in requests:
        harness.submit(case.prompt, case.source, max_tokens=1, num_logprobs=VOCAB)
    harness.run()
    assert sum(bool(case.source and case.source.invocation) for case in requests) > 1
    for request_id, case in enumerate(requests):
        wanted = Expected(case.expected.tokens[:1], case.expected.logprobs[:1])
        check(harness, request_id, replace(case, expected=wanted))


def test_texts_are_classified_beside_prompts(device: torch.device, tmp_path: Path) -> None:
    model = tiny_model("llama")
    harness = harness_of(model, device, rows=64, num_blocks=60, max_batch_tokens=20)
    served = ServedBase.of(harness.info, max_host_bytes=1 << 30)
    classified = texts(model, tmp_path, served, every=False)
    harness.submit([5, 6], max_tokens=4)
    asked = {harness.submit(text.prompt, text.source): text for text in classified}
    one = [harness.submit(text.prompt[:1], text.source) for text in classified[::2]]
    harness.run()  # those of one token are in a step that has the form of decode
    for request_id, text in asked.items():
        check_logits(harness, request_id, text)
    assert all(len(harness.scores[request_id].numbers) for request_id in one)
    assert len(harness.output(0)) == 4


def test_prompts_are_reported_beside_others(device: torch.device, tmp_path: Path) -> None:
    model = tiny_model("llama")
    saved = save_adapter(model, tmp_path / "a", seed=1, r=4, target_modules="all-linear")
    source = pack_source(saved, tmp_path / "a.package")
    prompt = [3 + i % 60 for i in range(30)]
    harness = harness_of(model, device, rows=64, num_blocks=60, max_batch_tokens=20)
    writing = harness.submit([5, 6], max_tokens=6)
    kinds: list[tuple[torch.nn.Module, Any]] = [(model, None), (with_adapter(model, saved), source)]
    reported = [
        (harness.submit(prompt, adapter, max_tokens=size, num_prompt_logprobs=3), wrapped)
        for wrapped, adapter in kinds
        for size in (0, 2)
    ]
    harness.run()
    for request_id, wrapped in reported:
        wanted = expected_logprobs(wrapped, prompt)
        check_prompt_logprobs(
            harness.prompt_logprobs(request_id), prompt, wanted, LOGPROB_TOLERANCE
        )
    assert len(harness.output(writing)) == 6
    assert [len(harness.output(request_id)) for request_id, _ in reported] == [0, 2, 0, 2]


@pytest.fixture
def workload(tmp_path: Path) -> tuple[PreTrainedModel, list[Any]]:
    model = tiny_model("qwen3")
    sources = []
    for seed, rank in enumerate((4, 20, 13)):
        folder = save_adapter(
            model, tmp_path / str(seed), seed=seed, r=rank, target_modules="all-linear"
        )
        sources.append(pack_source(folder, tmp_path / f"{seed}.package"))
    for name in ("dora with biases", "ia3"):
        folder = save(model, vector_configs(model)[name], tmp_path / name, seed=len(sources))
        sources.append(pack_source(folder, tmp_path / f"{name}.package"))
    return model, [None, *sources, sources[1]]


def logprobs(harness: Harness, sources: list[Any]) -> torch.Tensor:
    for index, source in enumerate(sources):
        harness.submit(range(3, 9 + 2 * index), source, max_tokens=TOKENS, num_logprobs=VOCAB)
    harness.run()
    return torch.tensor(
        [
            [logprob for _, logprob in sorted(token.logprobs.top)]  # type: ignore[union-attr]
            for request in harness.tokens.values()
            for token in request
        ]
    )


def test_all_ways_give_the_same(
    workload: tuple[PreTrainedModel, list[Any]],
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rows in the base matmul, A rows in a kernel of their own, and layers that stay apart."""
    model, sources = workload[0], workload[1][::2]
    plan = Plan.of(device)
    found = {"definition": logprobs(Harness(copy.deepcopy(model), kernels="torch"), sources)}
    for name, spare_rows, is_stacked in (
        ("merged", 1 << 20, True),
        ("gathered", -1, True),
        ("merged, layers apart", 1 << 20, False),
        ("gathered, layers apart", -1, False),
    ):
        changed = replace(plan, max_spare_rows=spare_rows)
        monkeypatch.setattr(Plan, "of", lambda _, changed=changed: changed)
        with monkeypatch.context() as patch:
            if not is_stacked:
                patch.setattr(decoder_model, "find_layers", lambda *_: None)
            found[name] = logprobs(harness_of(model, device, rows=67), sources)
    for name, values in found.items():
        torch.testing.assert_close(values, found["definition"], rtol=0, atol=1e-4, msg=name)


def test_a_row_does_not_depend_on_its_neighbours(
    workload: tuple[PreTrainedModel, list[Any]],
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, sources = workload
    plan = replace(Plan.of(device), max_spare_rows=-1)
    monkeypatch.setattr(Plan, "of", lambda _: plan)
    harness = harness_of(model, device, rows=64, prefix_cache=False)
    together = logprobs(harness, sources).view(len(sources), TOKENS, -1)
    alone = logprobs(harness_of(model, device, rows=64), sources[:1])
    torch.testing.assert_close(alone, together[0], rtol=0, atol=1e-5)


def packed(shapes: list[GroupShape], rank: int, form: WeightFormat) -> PackedAdapter:
    """Return an adapter of `rank` in the first part of each group, and of one less in others."""
    generator = np.random.default_rng(rank)
    layers = []
    rank_GP = np.zeros((len(shapes), 3), np.int32)
    for group, shape in enumerate(shapes):
        for part, outputs in enumerate(shape.out_features):
            r = rank - (part > 0)
            rank_GP[group, part] = r
            a = generator.standard_normal((r, shape.in_features)).astype(np.float16)
            b = generator.standard_normal((r, outputs)).astype(np.float16)
            bits = (a.view(np.uint16), b.view(np.uint16))
            layers.append(PackedLayer(LayerPlace(group, part), *bits))
    scale_GP = np.full((len(shapes), 3), 0.5, np.float32)
    return PackedAdapter(rank, form, layers, rank_GP, scale_GP, row_item_bytes=2)


@pytest.mark.parametrize("most_bytes", [1, 1 << 10, 1 << 30])
def test_an_adapter_is_put_in_its_rows_and_nowhere_else(
    most_bytes: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few of its bytes come to the device at a time."""
    monkeypatch.setattr(extended_slab, "_MOST_BYTES", most_bytes)
    shapes = [GroupShape(16, (8, 4, 4)), GroupShape(8, (16,))]
    slab = ExtendedSlab(shapes, 40, device, torch.float16)
    bases = [torch.randn(16, width).half().to(device) for width in (16, 8)]
    for group, base in enumerate(bases):
        assert torch.equal(slab.place(group, base), base)
    for rows in (*slab.a, *slab.b):
        rows.fill_(float("nan"))
    adapter = slab.pack(packed(shapes, 11, WeightFormat.FLOAT16))
    slab.write(8, adapter)
    for layer in adapter.layers:
        group, part = layer.place.group, layer.place.part
        first = shapes[group].num_parts * 8 + part * 16
        columns = np.cumsum([0, *shapes[group].out_features])
        where = slice(8, 8 + len(layer.b_RN)), slice(*columns[part : part + 2])
        for found, wanted in (
            (slab.a[group][first : first + len(layer.a_RK)], layer.a_RK),
            (slab.b[group][where], layer.b_RN),
        ):
            assert torch.equal(found.cpu(), torch.from_numpy(wanted).view(torch.float16))
    for group, base in enumerate(bases):
        stack = shapes[group].num_parts
        slab.a[group][stack * 8 : stack * 24] = float("nan")
        slab.b[group][8:24] = float("nan")
        extended = slab.extended[group]
        assert extended is not None
        assert torch.equal(extended[:16], base)
        assert extended[16:].isnan().all()
        assert slab.b[group].isnan().all()
    assert slab.table is not None
    assert slab.table.size_A.tolist() == [0, 16, 0, 0, 0]
    assert slab.table.rank_GAP[:, 1].tolist() == adapter.rank_GP.tolist()
    assert slab.table.scale_GAP[:, 1].tolist() == adapter.scale_GP.tolist()


def test_factors_and_shifts_lie_behind_the_rows_in_float32(device: torch.device) -> None:
    shapes = [GroupShape(16, (8, 4, 4)), GroupShape(8, (16,))]
    slab = ExtendedSlab(shapes, 47, device, torch.float16)
    assert slab.num_rows == len(slab.b[0]) == 40  # whole granules
    for group, width in enumerate((16, 8)):
        slab.place(group, torch.randn(16, width).half())
        slab.b[group].fill_(float("nan"))
    factor, shift = torch.randn(8), 1e-6 * torch.randn(16)  # no float16 has these
    plain = packed(shapes, 11, WeightFormat.FLOAT16)
    edits = Edits(affine={0: {0: Affine(factor)}, 1: {0: Affine(None, shift)}})
    before = vectors(slab.b[0], 24)[0].cpu().clone()
    adapter = slab.pack(replace(plain, edits=edits))
    assert adapter.blob is not None
    weights = 16 * sum(shape.row_weights for shape in shapes)
    assert adapter.blob.nbytes == 2 * weights + 4 * (8 + 16)  # what was counted, no more
    assert adapter.edits is not None
    lies_in = adapter.blob.untyped_storage().data_ptr()
    for *_, vector in vectors_of(adapter.edits.affine):
        assert vector.untyped_storage().data_ptr() == lies_in
    slab.write(8, adapter)
    found = [vectors(b, 24).cpu() for b in slab.b]
    assert torch.equal(found[0][0, :8], factor)
    assert torch.equal(found[1][1], shift)
    for rest in (found[0][0, 8:], found[0][1], found[1][0]):
        assert torch.equal(rest, before[: len(rest)])
    assert all(rows[28:].isnan().all() for rows in slab.b)
    assert slab.table is not None
    assert slab.table.affine_GAP[:, 1].tolist() == [[FACTOR, 0, 0], [SHIFT, 0, 0]]

    slab.write(8, slab.pack(plain))
    assert not slab.table.affine_GAP.any()


@pytest.mark.parametrize("kind", ["qwen3-vl", "gemma3"])
def test_images_in_prompts_are_the_same_as_by_definition(
    kind: str, device: torch.device, tmp_path: Path
) -> None:
    """Positions by height and width, features between layers; tokens that see each other."""
    found = []
    for name, where in (("torch", "cpu"), ("triton", str(device))):
        case = vision_case(kind, tmp_path / name, where)
        harness = Harness(case.base, kernels=name, max_batch_tokens=11)
        ids = [show(harness, prompt) for prompt in case.prompts()]
        harness.run()
        found.append(torch.cat([prompt_logprobs_of(harness, request_id) for request_id in ids]))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-4)
