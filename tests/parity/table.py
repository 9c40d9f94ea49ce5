"""How far each method is from PEFT on each architecture, as a table.

`python -m tests.parity.table --output docs/parity.md`: for every architecture all methods run in
one mixed batch, and each row's log-probabilities are held against PEFT with that adapter alone, and
against the model that PEFT's `merge_and_unload` makes, where it makes one.
"""

import copy
import json
import math
import random
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel

from tests.parity import test_classifiers, test_experts, test_methods, test_saved
from tests.support.adapters import Expected, expected, pack_source, quiet_peft, with_adapter
from tests.support.engine import Harness
from tests.support.models import VOCAB, tiny_model

ARCHITECTURES = (
    "llama", "qwen2", "qwen3", "mistral", "gemma", "phi", "gpt2", "gpt-neox",
    "qwen3-moe", "qwen3.5",
)  # fmt: skip
NUM_TOKENS = 6
_SAME_TO_PEFT = 1e-2
"""Rounding is below; two models that differ are above."""
Save = Callable[[PreTrainedModel, PeftConfig, Path, int], Path]


@dataclass(frozen=True)
class Cell:
    """What was found of one method on one architecture."""

    alone: float
    """Largest difference of a log-probability, or of a label's logit, from PEFT with the adapter
    alone."""
    merged: float | None
    """The same from the merged model; None where PEFT does not merge it, NaN where what it merges
    is not what it computed before."""
    has_same_tokens: bool
    """Whether the greedy tokens, or the likeliest labels, are those of PEFT alone."""

    def __str__(self) -> str:
        merged = "-" if self.merged is None else f"{self.merged:.0e}".replace("nan", "†")
        return f"{self.alone:.0e} / {merged}{'' if self.has_same_tokens else ' (tokens differ)'}"


def methods(model: PreTrainedModel) -> Mapping[str, tuple[PeftConfig, Save]]:
    """Return each method's config for `model`, and what saves an adapter of it."""
    kinds = {name: (config, test_methods.save) for name, config in
             test_methods.configs(model).items()}  # fmt: skip
    others = {name: (config, test_saved.save) for name, config in test_saved.configs(model).items()}
    kinds |= {f"beside layers: {name}": found for name, found in others.items()}
    if hasattr(model.config, "num_experts"):
        experts = {name: (config, test_methods.save) for name, config in
                   test_experts.configs().items() if config.target_parameters}  # fmt: skip
        kinds |= {f"of experts: {name}": found for name, found in experts.items()}
    return kinds


def _merged(wrapped: nn.Module) -> nn.Module | None:
    try:
        with quiet_peft():
            merged: nn.Module = copy.deepcopy(wrapped).merge_and_unload()  # type: ignore[operator]
    except Exception:  # whatever PEFT says of a method that it does not merge
        return None
    return merged


def _distance(harness: Harness, request_id: int, wanted: Expected) -> float:
    worst = 0.0
    for token, logprob_V in zip(harness.tokens[request_id], wanted.logprobs, strict=True):
        assert token.logprobs is not None
        ours = torch.full_like(logprob_V, float("nan"))
        for top, logprob in token.logprobs.top:
            ours[top] = logprob
        worst = max(worst, float((ours - logprob_V).abs().max()))
    return worst


def measure(architecture: str, folder: Path) -> dict[str, Cell | None]:
    """Return the cells of one column; None where PEFT itself fails."""
    model = tiny_model(architecture)
    rng = random.Random(0)
    found: dict[str, Cell | None] = {}
    asked: dict[str, tuple[int, Expected, Expected | None]] = {}
    harness = Harness(
        copy.deepcopy(model), kernels="cpu", rows=4096, num_blocks=600, max_batch_tokens=48,
        max_running=8,
    )  # fmt: skip
    for seed, (name, (config, save)) in enumerate(methods(model).items()):
        prompt = [rng.randrange(3, VOCAB) for _ in range(rng.randint(2, 20))]
        try:
            saved = save(model, config, folder / str(seed), seed)
            wrapped = with_adapter(model, saved)
            alone = expected(wrapped, prompt, NUM_TOKENS)
        except Exception:  # whatever PEFT says of a method that this model cannot have
            found[name] = None
            continue
        merged = _merged(wrapped)
        # Along the same tokens, whatever rounding would have made of them.
        whole = _along(merged, prompt, alone.tokens) if merged else None
        source = pack_source(saved, folder / f"{seed}.safetensors")
        request_id = harness.submit(
            prompt, source, max_tokens=NUM_TOKENS, num_logprobs=alone.logprobs.shape[1]
        )
        asked[name] = request_id, alone, whole
    classified = {
        harness.submit(text.prompt, text.source): text
        for text in test_classifiers.texts(model, folder, every=True)
    }
    harness.run()
    for name, (request_id, alone, whole) in asked.items():
        found[name] = Cell(
            _distance(harness, request_id, alone),
            _merged_distance(harness, request_id, alone, whole) if whole else None,
            harness.output(request_id) == alone.tokens,
        )
    for request_id, text in classified.items():
        name = f"head: {text.method}"
        cell = _cell_of_labels(harness, request_id, text)
        before = found.get(name)
        found[name] = cell if before is None or cell.alone > before.alone else before
    return found


def _cell_of_labels(harness: Harness, request_id: int, text: test_classifiers.Text) -> Cell:
    ours = harness.logits(request_id, text.logits.shape[-1]).reshape(text.logits.shape)
    same = torch.equal(ours.argmax(-1), text.logits.argmax(-1))
    return Cell(float((ours - text.logits).abs().max()), None, same)


def _merged_distance(harness: Harness, request_id: int, alone: Expected, whole: Expected) -> float:
    if (alone.logprobs - whole.logprobs).abs().max() > _SAME_TO_PEFT:
        return math.nan
    return _distance(harness, request_id, whole)


@torch.inference_mode()
def _along(model: nn.Module, prompt: list[int], tokens: list[int]) -> Expected:
    """Return what `model` says after each of `tokens`."""
    logits = model(input_ids=torch.tensor([[*prompt, *tokens[:-1]]]), use_cache=False).logits[0]
    return Expected(tokens, torch.log_softmax(logits[len(prompt) - 1 :].float(), -1))


def _lines(columns: Mapping[str, Mapping[str, Cell | None]]) -> list[str]:
    names = list({name: None for column in columns.values() for name in column})
    cells = [cell for column in columns.values() for cell in column.values() if cell]
    return [
        "# How far each method is from PEFT",
        "",
        "Every method in one mixed batch, against PEFT with that adapter alone / against the model",
        "that `merge_and_unload` makes: the largest difference of a log-probability over "
        f"{NUM_TOKENS} greedy tokens",
        "and the whole vocabulary, float32, tiny models with seeded weights. An empty cell is what",
        "PEFT itself does not do, - what it does not merge, † where its merged model is not what",
        "it computed before: with tied weights it adds to both. Of adapters with a head it is the",
        "largest difference of an output's logit, over two texts or all of their tokens. Norms are",
        "those outside of recurrent layers: what is inside of these is served for layers alone.",
        "",
        f"PEFT {version('peft')}, transformers {version('transformers')}, torch "
        f"{version('torch')}. Worst of {len(cells)} cells: "
        f"{max(cell.alone for cell in cells):.1e}; greedy tokens and likeliest labels equal in "
        f"{sum(cell.has_same_tokens for cell in cells)} of them.",
        "`python -m tests.parity.table --output docs/parity.md` makes this page.",
        "",
        f"| method | {' | '.join(columns)} |",
        f"| --- |{' --- |' * len(columns)}",
        *(
            f"| {name} | {' | '.join(str(column.get(name) or '') for column in columns.values())} |"
            for name in names
        ),
    ]  # fmt: skip


def main(
    output: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="JSON file to write.")] = None,
    architecture: Annotated[list[str] | None, typer.Option(help="Only these.")] = None,
) -> None:
    """Measure and print the table."""
    columns = {}
    for name in architecture or ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            columns[name] = measure(name, Path(folder))
    text = "\n".join(_lines(columns)) + "\n"
    print(text, end="")
    if output:
        output.write_text(text, encoding="utf-8")
    if as_json:
        plain: dict[str, Any] = {
            name: {method: cell and vars(cell) for method, cell in column.items()}
            for name, column in columns.items()
        }
        as_json.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
