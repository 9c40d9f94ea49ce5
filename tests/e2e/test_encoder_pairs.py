"""Texts in pairs on a base model that is a BERT, with token types and without, over the socket."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
)

from loramux import Client
from loramux.errors import FailedPreconditionError, InvalidArgumentError
from tests.support.adapters import save_tuned
from tests.support.embedders import vector_of, write_sentence_files
from tests.support.encoder_tokenizers import wordpiece
from tests.support.questions import pipeline_answers
from tests.support.server import RunningServer

QUESTION, CONTEXT = "Who left the city?", "Ann left the city in May. Bob left it, too."


@dataclass
class Encoder:
    """A client of a server of a tiny BERT, and what that server has."""

    client: Client
    base: BertModel
    finder: PeftModel
    tuned: dict[str, PeftModel]
    """Name of an adapter with virtual tokens -> what it is to PEFT."""
    tokenizer: Any


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoder]:
    folder, tokenizer = tmp_path_factory.mktemp("encoder"), wordpiece()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64, initializer_range=0.4, pad_token_id=0,
    )  # fmt: skip
    base = BertModel(config).eval()
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(str(folder / "base"))
    write_sentence_files(folder / "base", "cls", normalizes=False)
    model = AutoModelForQuestionAnswering.from_pretrained(folder / "base").eval()
    lora = LoraConfig(task_type="QUESTION_ANS", r=4, target_modules=["query", "value"])
    finder = save_tuned(model, lora, folder / "adapters" / "finder", seed=1)
    sizes = {"num_virtual_tokens": 3, "token_dim": 32, "num_layers": 2, "num_attention_heads": 4}
    judge = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=3).eval()
    tuned = {
        "prompt": (model, PromptTuningConfig(task_type="QUESTION_ANS", **sizes)),
        "judge": (judge, PrefixTuningConfig(task_type="SEQ_CLS", **sizes)),
        "embedded": (base, PromptTuningConfig(task_type="FEATURE_EXTRACTION", **sizes)),
        "keyed": (base, PrefixTuningConfig(task_type="FEATURE_EXTRACTION", **sizes)),
    }
    virtual = {
        name: save_tuned(own, each, folder / "adapters" / name, seed=2)
        for name, (own, each) in tuned.items()
    }
    with (
        RunningServer(
            tmp_path_factory.mktemp("server"),
            folder / "base",
            "--adapters",
            str(folder / "adapters"),
        ) as server,
        server.client() as client,
    ):
        yield Encoder(client, base, finder, virtual, tokenizer)


@pytest.mark.parametrize("tells_types", [False, True])
@torch.inference_mode()
def test_questions_are_answered_as_the_adapter_was_trained(
    served: Encoder, tells_types: bool
) -> None:
    types = served.tokenizer(QUESTION, CONTEXT).token_type_ids
    # PEFT's own model for questions passes no types on, and what is in it does.
    model = served.finder.base_model if tells_types else served.finder

    def logits(ids: Sequence[int]) -> torch.Tensor:
        output = model(input_ids=torch.tensor([list(ids)]), token_type_ids=torch.tensor([types]))
        return torch.stack([output.start_logits[0], output.end_logits[0]], dim=-1)

    wanted = pipeline_answers(logits, served.tokenizer, QUESTION, CONTEXT, top_k=3)
    found = served.client.answer(
        QUESTION, CONTEXT, adapter="finder", top_k=3, token_types=tells_types
    ).results[0].answers  # fmt: skip
    assert [each.text for each in found] == [each.text for each in wanted]
    assert [each.score for each in found] == pytest.approx(
        [each.score for each in wanted], rel=1e-4
    )


@torch.inference_mode()
def test_heads_read_texts_behind_virtual_tokens(served: Encoder) -> None:
    encoded = served.tokenizer(QUESTION, CONTEXT, return_tensors="pt")
    model = served.tuned["prompt"]

    def logits(ids: Sequence[int]) -> torch.Tensor:
        output = model(input_ids=torch.tensor([list(ids)]))
        both = torch.stack([output.start_logits[0], output.end_logits[0]], dim=-1)
        return both[-len(ids) :]  # those of virtual tokens come first

    wanted = pipeline_answers(logits, served.tokenizer, QUESTION, CONTEXT, top_k=3)
    found = served.client.answer(QUESTION, CONTEXT, adapter="prompt", top_k=3).results[0].answers
    assert [each.text for each in found] == [each.text for each in wanted]
    assert [each.score for each in found] == pytest.approx(
        [each.score for each in wanted], rel=1e-4
    )
    scores = served.tuned["judge"](**encoded).logits[0].softmax(-1)
    labels = served.client.classify([(QUESTION, CONTEXT)], adapter="judge").results[0].labels
    reported = {each.label: each.score for each in labels}
    assert reported == pytest.approx(
        {f"LABEL_{index}": float(score) for index, score in enumerate(scores)}, rel=1e-4
    )
    with pytest.raises(
        FailedPreconditionError, match="has hidden states that were trained for its head"
    ):
        served.client.embed("a premise", adapter="judge")


@torch.inference_mode()
def test_vectors_are_made_as_the_base_s_folder_says(served: Encoder) -> None:
    states = served.base(**served.tokenizer("a premise", return_tensors="pt")).last_hidden_state[0]
    found = served.client.embed("a premise")
    assert (found.pooling, found.is_normalized) == ("first", False)
    torch.testing.assert_close(torch.tensor(found.vector), states[0], rtol=0, atol=1e-4)
    mean = served.client.embed("a premise", pooling="mean").vector
    torch.testing.assert_close(torch.tensor(mean), states.mean(0), rtol=0, atol=1e-4)
    assert served.client.info().kind == "encoder"
    with pytest.raises(FailedPreconditionError, match="is an encoder") as caught:
        served.client.generate("a premise")
    assert caught.value.reason == "BASE_CONTINUES_NO_TEXT"


@pytest.mark.parametrize("name", ["embedded", "keyed"])
@torch.inference_mode()
def test_vectors_are_made_behind_virtual_tokens(served: Encoder, name: str) -> None:
    ids = served.tokenizer("a premise", return_tensors="pt").input_ids
    # Embeddings before a text are a part of it to what pools, keys and values are not.
    states = served.tuned[name](input_ids=ids).last_hidden_state[0]
    for pooling in ("first", "mean", "last"):
        found = served.client.embed("a premise", adapter=name, pooling=pooling, normalize=False)
        wanted = vector_of(states, pooling, normalize=False)
        torch.testing.assert_close(torch.tensor(found.vector), wanted, rtol=0, atol=1e-4)
        assert found.usage.prompt_tokens == ids.shape[1]
    served.client.embed([[5] * 61], adapter=name)
    with pytest.raises(InvalidArgumentError, match=r"62 tokens.* 3 virtual tokens.* has 64"):
        served.client.embed([[5] * 62], adapter=name)
