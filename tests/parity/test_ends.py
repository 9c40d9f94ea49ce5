"""Changes before and behind the layers: as PEFT has them, and the layers stay one program."""

import copy
import random
from pathlib import Path

import pytest
from peft import PeftConfig
from transformers import PreTrainedModel

from loramux_server.kernels.cpu.program import Program
from loramux_server.models.base_model import BaseModel
from loramux_server.models.decoder_model import prepare
from loramux_server.wire.adapter_source import AdapterSource
from tests.parity.test_peft import Case, check
from tests.parity.test_saved import TOKENS, TOLERANCE, configs, lora, save
from tests.support.adapters import expected, pack_source, quiet_peft, with_adapter
from tests.support.batches import model as make
from tests.support.engine import Harness
from tests.support.models import VOCAB

ENDS = (
    "embeddings", "output", "lora of embeddings", "lora of output", "dora of both", "lora, tied",
    "tokens", "nothing but tokens", "tokens of output",
)  # fmt: skip
GROWN = VOCAB + 5


class Ways:
    """How often the layers of a model ran: as one program, and one after the other."""

    def __init__(self, base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.programs = self.apart = 0
        assert base.stack is not None
        base.stack.originals[0].register_forward_pre_hook(self._note)
        run = Program.run

        def noted(program: Program) -> None:
            self.programs += 1
            run(program)

        monkeypatch.setattr(Program, "run", noted)

    def _note(self, *_: object) -> None:
        self.apart += 1


def ends(model: PreTrainedModel) -> dict[str, PeftConfig]:
    """Return configs that change `model` before and behind its layers, and LoRA of these."""
    found = configs(model)
    both = lora(["q_proj", "down_proj"], modules_to_save=["embed_tokens", "lm_head"])
    norm = lora(["q_proj", "v_proj"], modules_to_save=["model.norm"])
    return {name: found[name] for name in ENDS} | {
        "both": both, "last norm": norm, "lora alone": lora(["q_proj"])
    }  # fmt: skip


def saved_case(
    model: PreTrainedModel, config: PeftConfig, folder: Path, seed: int, prompt: list[int]
) -> Case:
    saved = save(model, config, folder, seed)
    source = pack_source(saved, folder / "package", model.config.vocab_size)
    return Case(prompt, source, expected(with_adapter(model, saved), prompt, 4))


def submit(harness: Harness, case: Case) -> int:
    return harness.submit(
        case.prompt, case.source, max_tokens=len(case.expected.tokens),
        num_logprobs=case.expected.logprobs.shape[1],
    )  # fmt: skip


@pytest.mark.parametrize("is_tied", [False, True])
def test_changed_ends_equal_peft_and_leave_the_layers_one_program(
    is_tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(tie_word_embeddings=is_tied)
    resized = copy.deepcopy(model)
    with quiet_peft():
        resized.resize_token_embeddings(GROWN, mean_resizing=False)
    rng = random.Random(0)
    cases = []
    for seed, (name, config) in enumerate(ends(model).items()):
        prompt = [rng.choice([*TOKENS, rng.randrange(3, VOCAB)]) for _ in range(9)]
        cases.append(saved_case(model, config, tmp_path / name, seed, prompt))
        if seed % 3 == 0:
            cases.append(Case(prompt, None, expected(model, prompt, 4)))
    config = lora(["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    cases.append(saved_case(resized, config, tmp_path / "grown", 50, [GROWN - 1, 5, GROWN - 3]))
    rng.shuffle(cases)
    base = prepare(copy.deepcopy(model))
    harness = Harness(
        base, kernels="cpu", rows=2048, num_blocks=400, max_batch_tokens=24, max_running=8
    )  # fmt: skip
    ways = Ways(base, monkeypatch)
    for index, case in enumerate(cases):
        submit(harness, case)
        if index % 3 == 2:  # prompts and decode share steps
            harness.step()
    harness.run()
    assert not harness.failures
    for request_id, case in enumerate(cases):
        check(harness, request_id, case, TOLERANCE)
    assert ways.apart == 0
    assert ways.programs == sum(report.batch is not None for report in harness.reports)


def test_a_change_inside_of_the_layers_takes_them_apart_only_while_it_is_in_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    inside = lora(["q_proj"], modules_to_save=["embed_tokens", "input_layernorm"])
    base = prepare(copy.deepcopy(model))
    harness = Harness(base, kernels="cpu", rows=1024, num_blocks=200)
    ways = Ways(base, monkeypatch)
    prompt = [40, 7, 5, 11]
    cases = [
        saved_case(model, inside, tmp_path / "inside", 0, prompt),
        saved_case(model, ends(model)["tokens"], tmp_path / "tokens", 1, prompt),
        Case(prompt, None, expected(model, prompt, 4)),
    ]
    submit(harness, cases[0])
    submit(harness, cases[2])
    harness.run()
    assert ways.apart == len(cases[0].expected.tokens)
    submit(harness, cases[1])
    harness.run()
    assert ways.apart == len(cases[0].expected.tokens)
    assert ways.apart + ways.programs == sum(r.batch is not None for r in harness.reports)
    for request_id, index in enumerate((0, 2, 1)):
        check(harness, request_id, cases[index], TOLERANCE)


def test_a_neighbour_has_the_same_bits_whether_ends_are_changed_beside_it_or_not(
    tmp_path: Path,
) -> None:
    model = make()
    one, other = ([40, 7, 5, 11], [9, 8, 3])
    changed = saved_case(model, ends(model)["both"], tmp_path / "both", 0, one).source
    plain, third = (
        saved_case(model, lora(["q_proj", "down_proj"]), tmp_path / str(seed), seed, one).source
        for seed in (1, 2)
    )

    def beside(source: AdapterSource | None) -> list[object]:
        harness = Harness(copy.deepcopy(model), kernels="cpu", rows=1024, num_blocks=200)
        numbers = [
            harness.submit(prompt, adapter, max_tokens=4, num_logprobs=VOCAB)
            for prompt, adapter in ((one, source), (other, None), (other[:2], third))
        ]
        harness.run()
        return [
            (token.token, token.logprobs) for each in numbers[1:] for token in harness.tokens[each]
        ]

    assert beside(changed) == beside(plain)
