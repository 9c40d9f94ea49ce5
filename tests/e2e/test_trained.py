"""What `loramux train` makes of examples, pushed to a server: what transformers and PEFT have."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from loramux_adapters.head import Task
from loramux_adapters.train.models import load_model
from tests.support.encoder_models import save_encoder_base
from tests.support.encoder_tokenizers import wordpiece
from tests.support.questions import pipeline_answers
from tests.support.server import RunningServer
from tests.support.trained import Trainer, adapted

LABELLED = [
    {"text": f"{word} left in May{end}", "label": label}
    for word, label in (("Ann", "good"), ("Bob", "bad"), ("it", "so-so"))
    for end in (".", "", ", too.")
]
PAIRS = [line | {"pair": "the city"} for line in LABELLED]
TAGGED = [
    {"tokens": [word, "left", "the", place], "tags": ["WHO", "O", "O", tag]}
    for word in ("Ann", "Bob")
    for place, tag in (("city", "WHERE"), ("premise", "WHAT"), ("hypothesis", "WHAT"))
]
ASKED = [
    {"question": "Who left?", "context": f"{word} left the naïve city 🙂 in May.", "answer": word}
    for word in ("Ann", "Bob", "it", "")
]
TEXT = "Ann left the city in May"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    folder = tmp_path_factory.mktemp("trained")
    base = save_encoder_base("bert", folder / "base")
    wordpiece().save_pretrained(str(base))
    with RunningServer(folder / "server", base) as server, server.client() as client:
        yield Trainer(base, client, folder)


@pytest.fixture(scope="module")
def llama(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_server: RunningServer
) -> Iterator[Trainer]:
    with tiny_server.client() as client:
        before = {each.name for each in client.adapters.list()}
        yield Trainer(tiny_base, client, tmp_path_factory.mktemp("trained"))
        for name in {each.name for each in client.adapters.list()} - before:
            client.adapters.delete(name)


def check_labels(trainer: Trainer, name: str, model: PeftModel, text: Any) -> None:
    """Demand of the server the labels, with their scores, that `model` gives a text or a pair."""
    texts = (text,) if isinstance(text, str) else text
    encoded = trainer.tokenizer(*texts, return_tensors="pt")
    if "token_type_ids" in encoded and encoded["token_type_ids"].sum() == 0:
        del encoded["token_type_ids"]
    with torch.inference_mode():
        scores = model(**encoded).logits[0].softmax(-1).tolist()
    wanted = dict(zip(("bad", "good", "so-so"), scores, strict=True))
    (result,) = trainer.client.classify([text], adapter=name).results
    assert {each.label: each.score for each in result.labels} == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("method", ["lora", "adalora", "ia3", "prompt", "prefix"])
def test_an_encoder_labels_texts_as_it_was_trained_to(bert: Trainer, method: str) -> None:
    name = f"mood-{method}"
    model = bert.tuned(
        AutoModelForSequenceClassification, bert.push(name, LABELLED, method=method), num_labels=3
    )
    check_labels(bert, name, model, TEXT)


@pytest.mark.parametrize("trained_on", ["bert", "llama"])
def test_pairs_are_labelled(trained_on: str, request: pytest.FixtureRequest) -> None:
    trainer: Trainer = request.getfixturevalue(trained_on)
    folder = trainer.push("pairs", PAIRS, method="dora")
    model = trainer.tuned(AutoModelForSequenceClassification, folder, num_labels=3)
    check_labels(trainer, "pairs", model, (TEXT, "the city"))


@pytest.mark.parametrize("trained_on", ["bert", "llama"])
@pytest.mark.parametrize(
    ("name", "learned"),
    [
        ("score", [{"score": 0.5}, {"score": -2}]),
        ("several", [{"labels": ["x", "y"]}, {"labels": []}]),
    ],
)
def test_numbers_and_several_labels_are_reported_as_they_were_learned(
    trained_on: str, name: str, learned: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    trainer: Trainer = request.getfixturevalue(trained_on)
    lines = [{"text": f"{word} left", **each} for word in ("Ann", "Bob") for each in learned]
    names = ["score"] if name == "score" else ["x", "y"]
    folder = trainer.push(name, lines)
    model = trainer.tuned(AutoModelForSequenceClassification, folder, num_labels=len(names))
    ids = trainer.tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0]
    wanted = (logits if name == "score" else logits.sigmoid()).tolist()
    (result,) = trainer.client.classify([TEXT], adapter=name).results
    reported = {each.label: each.score for each in result.labels}
    assert reported == pytest.approx(dict(zip(names, wanted, strict=True)), abs=1e-4)


@pytest.mark.parametrize("method", ["rslora", "prompt"])
def test_a_decoder_labels_texts_where_that_is_its_task(llama: Trainer, method: str) -> None:
    name = f"mood-{method}"
    folder = llama.push(name, LABELLED, task="classify", method=method)
    model = llama.tuned(AutoModelForSequenceClassification, folder, num_labels=3)
    model.config.pad_token_id = None  # there is one text
    check_labels(llama, name, model, TEXT)


@pytest.mark.parametrize(
    ("trained_on", "method"), [("bert", "lora"), ("bert", "prompt"), ("llama", "adalora")]
)
def test_words_are_tagged(
    trained_on: str, method: str, request: pytest.FixtureRequest
) -> None:  # fmt: skip
    trainer: Trainer = request.getfixturevalue(trained_on)
    folder = trainer.push(f"tags-{method}", TAGGED, method=method)
    model = trainer.tuned(AutoModelForTokenClassification, folder, num_labels=4)
    encoded = trainer.tokenizer(TEXT, return_tensors="pt")
    ids = encoded["input_ids"]
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, -ids.shape[1] :]
    (result,) = trainer.client.classify([TEXT], adapter=f"tags-{method}", top_k=4).results
    names = ["O", "WHAT", "WHERE", "WHO"]
    assert len(result.tokens) == len(logits)
    for token, scores in zip(result.tokens, logits.softmax(-1).tolist(), strict=True):
        wanted = dict(zip(names, scores, strict=True))
        assert {each.label: each.score for each in token.labels} == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("trained_on", "method"), [("bert", "prefix"), ("bert", "prompt"), ("llama", "lora")]
)
def test_questions_are_answered(
    trained_on: str, method: str, request: pytest.FixtureRequest
) -> None:  # fmt: skip
    trainer: Trainer = request.getfixturevalue(trained_on)
    folder = trainer.push(f"finder-{method}", ASKED, method=method)
    # transformers leaves the layers of Llama random in its class for questions.
    config = AutoModelForSequenceClassification.from_pretrained(trainer.base).config
    model = adapted(load_model(trainer.base, config, Task.SPANS, 0).model, folder)
    question, context = "Who left?", "Bob left the city 🙂 in May. Ann left it, too."

    @torch.inference_mode()
    def logits(ids: Any) -> torch.Tensor:
        output = model(input_ids=torch.tensor([list(ids)]))
        both = torch.stack([output.start_logits[0], output.end_logits[0]], dim=-1)
        return both[-len(ids) :]

    options: dict[str, Any] = {"top_k": 3, "handle_impossible_answer": True}
    to_words = trained_on == "bert"  # the other tokenizer knows none
    wanted = pipeline_answers(
        logits, trainer.tokenizer, question, context, align_to_words=to_words, **options
    )
    found = trainer.client.answer(question, context, adapter=f"finder-{method}", **options)
    assert [each.text for each in found.results[0].answers] == [each.text for each in wanted]
    assert [each.score for each in found.results[0].answers] == pytest.approx(
        [each.score for each in wanted], rel=1e-3
    )
