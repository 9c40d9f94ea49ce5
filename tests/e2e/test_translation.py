"""A Marian model as hubs have it, over the real socket: text to text, as with transformers."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import LoraConfig

from tests.support.adapters import save_tuned
from tests.support.encoder_models import own_model, save_encoder_base
from tests.support.pieces import RUN, save_marian
from tests.support.server import RunningServer
from tests.support.writers import generated

pytestmark = [
    pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses"),
    pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning"),
]
TEXTS = [
    "the old house is green",
    f">>fra<< nobody  reads {RUN}",
    ">>xyz<< a boy 😀 !",
    "the </s> end",
]
FILES = ("source.spm", "target.spm", "vocab.json", "tokenizer_config.json")
GREEDY: dict[str, Any] = {"max_tokens": 9, "temperature": 0.0, "repetition_penalty": 3.0}


@dataclass(frozen=True)
class Translator:
    server: RunningServer
    models: dict[str | None, torch.nn.Module]
    tokenizer: Any


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Translator]:
    from transformers import MarianTokenizer

    folder = tmp_path_factory.mktemp("marian")
    base, adapter = folder / "base", folder / "adapters" / "legal"
    base.mkdir()
    size = save_marian(base)
    padding = size - 1
    save_encoder_base(
        "marian", base, vocab_size=size, pad_token_id=padding, eos_token_id=0,
        decoder_start_token_id=padding, forced_eos_token_id=None, decoder_vocab_size=size,
    )  # fmt: skip
    own = own_model(base)
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q_proj", "fc1"], r=5)
    models = {None: own, "legal": save_tuned(own, config, adapter, seed=1)}
    for name in FILES:  # as trainers save them beside an adapter
        shutil.copy(base / name, adapter / name)
    with RunningServer(folder, base, "--adapters", str(folder / "adapters")) as server:
        yield Translator(server, models, MarianTokenizer.from_pretrained(str(base)))


def test_texts_are_translated_as_by_transformers(marian: Translator) -> None:
    found = set()
    with marian.server.client() as client:
        for name, model in marian.models.items():
            for text in TEXTS:
                source = marian.tokenizer(text, split_special_tokens=True).input_ids
                wanted = generated(model, source, 9, repetition_penalty=3.0)[0]
                answer = client.generate(text, adapter=name, **GREEDY)
                assert answer.usage.prompt_tokens == len(source)
                assert answer.token_ids == tuple(wanted)
                text_of_it = marian.tokenizer.decode(wanted, skip_special_tokens=True)
                assert answer.text.strip() == text_of_it
                chunks = client.stream(text, adapter=name, **GREEDY)
                assert "".join(chunk.text for chunk in chunks) == answer.text
                found.add(answer.text)
            parsed = client.generate(TEXTS[3], adapter=name, parse_special_tokens=True, **GREEDY)
            source = marian.tokenizer(TEXTS[3]).input_ids
            wanted = generated(model, source, 9, repetition_penalty=3.0)[0]
            assert parsed.token_ids == tuple(wanted)
    assert len(found) > len(TEXTS)


def test_forms_are_of_the_text_that_tokens_make(marian: Translator) -> None:
    # Words of either language, of which some have marks around them in the tokenizer.
    choices = ["ein haus", f"das {RUN}"]
    with marian.server.client() as client:
        seen = {client.generate("a", choice=choices, max_tokens=20, seed=n).text for n in range(12)}
        assert seen == set(choices)
        reported = client.generate("a", max_tokens=6, temperature=0.0, logprobs=2, ignore_eos=True)
        assert all("\ufdd0" not in text for text in (reported.text, str(reported)))
