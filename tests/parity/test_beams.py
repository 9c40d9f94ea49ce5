"""Beam search over the real socket gives what transformers and PEFT give, score for score."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux import Client, Generation
from tests.support.adapters import save_adapter, with_adapter
from tests.support.models import save_model, tiny_model
from tests.support.server import RunningServer

VOCAB = 259
EOS = 2
TOLERANCE = 1e-3
MAX_TOKENS = 10
PENALTIES = (0.6, 1.0, 2.0)
ADAPTERS = (None, "small", "wide")
PROMPTS = {None: [40, 7, 5, 11, 90], "small": [1, 70, 80], "wide": list(range(30, 54))}


@dataclass(frozen=True)
class Best:
    """A completion of transformers, up to its end token."""

    tokens: tuple[int, ...]
    score: float


@pytest.fixture(scope="module")
def qwen_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RunningServer, Path]]:
    folder = tmp_path_factory.mktemp("qwen")
    base, adapters = save_model(folder / "base", "qwen2"), folder / "adapters"
    model = tiny_model("qwen2", vocab_size=VOCAB)
    save_adapter(model, adapters / "small", seed=0, r=4, target_modules=["q_proj", "v_proj"])
    save_adapter(model, adapters / "wide", seed=1, r=13, target_modules="all-linear")
    with RunningServer(folder, base, "--adapters", str(adapters)) as server:
        yield server, adapters


@torch.inference_mode()
def searched(
    model: torch.nn.Module, prompt: list[int], ends: list[int], **given: Any
) -> list[Best]:
    """Return what `generate` finds with four beams."""
    ids = torch.tensor([prompt])
    found = model.generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=4,
        num_return_sequences=3, max_new_tokens=MAX_TOKENS, eos_token_id=ends, pad_token_id=0,
        output_scores=True, return_dict_in_generate=True, **given,
    )  # fmt: skip
    rows = []
    for row, score in zip(found.sequences.tolist(), found.sequences_scores.tolist(), strict=True):
        tokens = row[len(prompt) :]
        length = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
        rows.append(Best(tuple(tokens[:length]), score))
    return rows


def check(answer: Generation, wanted: list[Best], ends: list[int]) -> None:
    assert [each.token_ids for each in answer.completions] == [each.tokens for each in wanted]
    for completion, best in zip(answer.completions, wanted, strict=True):
        assert completion.beam_score == pytest.approx(best.score, abs=TOLERANCE)
        last = best.tokens[-1]
        assert completion.finish_reason == ("stop" if last in ends else "length")
        assert completion.stop_token_id == (last if last in ends else None)


def check_server(client: Client, architecture: str, adapters: Path) -> None:
    base = tiny_model(architecture, vocab_size=VOCAB)
    models = {name: with_adapter(base, adapters / name if name else None) for name in ADAPTERS}
    cases = []
    for name, penalty, early in itertools.product(ADAPTERS, PENALTIES, (False, True)):
        model, prompt = models[name], PROMPTS[name]
        # Tokens that this model likes, or no beam would ever end before its length.
        liked = searched(model, prompt, [EOS])
        ends = sorted({EOS, liked[0].tokens[4], liked[1].tokens[2], liked[2].tokens[-2]})
        options: dict[str, Any] = {"length_penalty": penalty, "early_stopping": early}
        cases.append((name, ends, options, searched(model, prompt, ends, **options)))
    lengths = {len(best.tokens) for *_, wanted in cases for best in wanted}
    assert len(lengths) > 3
    assert len({tuple(wanted) for name, *_, wanted in cases if name == "wide"}) > 1

    def ask(case: tuple[str | None, list[int], dict[str, Any], list[Best]]) -> Generation:
        name, ends, options, _ = case
        return client.generate(
            PROMPTS[name], adapter=name, num_beams=4, n=3, max_tokens=MAX_TOKENS,
            stop_token_ids=ends, **options,
        )  # fmt: skip

    with ThreadPoolExecutor(len(cases)) as pool:
        for case, answer in zip(cases, pool.map(ask, cases), strict=True):
            check(answer, case[3], case[1])


def test_a_llama_and_its_adapters(tiny_server: RunningServer, tiny_adapters: Path) -> None:
    with tiny_server.client() as client:
        check_server(client, "llama", tiny_adapters)


def test_a_qwen_and_its_adapters(qwen_server: tuple[RunningServer, Path]) -> None:
    server, adapters = qwen_server
    with server.client() as client:
        check_server(client, "qwen2", adapters)
