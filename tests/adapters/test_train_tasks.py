"""`loramux train` for heads and for models that write another text: rows, refusals, notes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from loramux_adapters import PackageError, open_package
from loramux_adapters.head import Task
from loramux_adapters.labels import ProblemType
from loramux_adapters.train.examples import Examples, read_examples
from loramux_adapters.train.head_rows import HeadRows
from loramux_adapters.train.models import load_model
from loramux_adapters.train.rows import Collator, Row, written_rows
from tests.adapters.test_train import LABELLED, write
from tests.support.command_line import Loramux
from tests.support.encoder_models import LENGTH, save_encoder_base
from tests.support.encoder_tokenizers import byte_level, unigram, wordpiece
from tests.support.pieces import save_marian
from tests.support.trained import SCORED, SEVERAL
from tests.support.writers import (
    END,
    LANGUAGES,
    ending_tokenizer,
    language_tokenizer,
    save_writer,
)

TAGGED = [
    {"tokens": [word, "here"], "tags": [tag, "O"]} for word, tag in (("Ann", "WHO"), ("May", "DAY"))
] * 4
ASKED = [
    {"question": "Who?", "context": f"{name} left.", "answer": name} for name in ("Ann", "Bob")
] * 4
WRITTEN = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
PAIRS = [{"text": "a", "pair": "b", "label": "X"}, {"text": "c", "pair": "d", "label": "Y"}] * 2


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT that was saved with what fills in words, and so without a pooler."""
    base = save_encoder_base("bert", tmp_path_factory.mktemp("bert"))
    wordpiece().save_pretrained(str(base))
    return base


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = language_tokenizer()
    french = tokenizer.convert_tokens_to_ids(LANGUAGES[1])
    folder = tmp_path_factory.mktemp("m2m100")
    return save_writer("m2m100", folder, tokenizer, forced_bos_token_id=french)


def train(loramux: Loramux, base: Path, lines: list[dict[str, Any]], *more: str) -> dict[str, Any]:
    """Train on `lines` and return what the command printed."""
    write(Path("data.jsonl"), lines)
    done = loramux(
        "train", "--base", str(base), "--data", "data.jsonl", "--threads", "1", "--json",
        "--eval-share", "0.25", "--batch-size", "2", "--rank", "2", "--lr", "0.03", *more,
    )  # fmt: skip
    assert done.code == 0, done.errors
    found: dict[str, Any] = json.loads(done.output)
    return found


def rows(folder: Path, lines: list[dict[str, Any]], makes: HeadRows) -> tuple[Examples, list[Row]]:
    examples = read_examples(write(folder / "data.jsonl", lines))
    return examples, makes.of(examples)


def test_a_head_is_trained_with_what_the_base_lacks_and_its_labels_are_noted(
    loramux: Loramux, bert: Path
) -> None:
    first = train(loramux, bert, LABELLED, "--seed", "3")
    assert train(loramux, bert, LABELLED, "--seed", "3")["digest"] == first["digest"]
    assert len(first["accuracy"]) == len(first["evaluation"]) == 4
    with open_package(Path(first["path"])) as (_, package):
        notes: Any = package.notes
        assert package.head is not None
        assert package.head.task is Task.SEQUENCE
        assert package.labels is not None
        assert package.labels.names == ("cold", "warm")
        assert package.labels.problem is ProblemType.SINGLE_LABEL
        names = [name for name in package.tensors if "lora" not in name]
        assert sorted(name.removeprefix("base_model.model.") for name in names) == [
            "bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias",
            "classifier.weight",
        ]  # fmt: skip
    assert "labels" not in notes
    assert notes["evaluation"]["eval_accuracy_before"] == first["accuracy"][0]
    assert notes["evaluation"]["eval_accuracy"] == first["accuracy"][-1]
    assert loramux("verify", first["path"], "--base", str(bert)).code == 0


def test_a_base_with_a_head_of_its_own_gets_another(
    loramux: Loramux, bert: Path, tmp_path: Path
) -> None:
    own = AutoModelForSequenceClassification.from_pretrained(
        bert, num_labels=5, problem_type="multi_label_classification"
    )
    own.save_pretrained(tmp_path / "own")
    wordpiece().save_pretrained(str(tmp_path / "own"))
    done = train(loramux, tmp_path / "own", LABELLED, "--method", "adalora", "--epochs", "1")
    with open_package(Path(done["path"])) as (_, package):
        assert package.labels is not None
        assert package.labels.names == ("cold", "warm")
        # Its pooler was saved, and low-rank changes of that are all that is needed.
        assert not any("pooler.dense.weight" in name for name in package.tensors)
        assert any("pooler.dense.lora_A" in name for name in package.tensors)


def test_layers_that_a_class_calls_otherwise_have_the_weights_of_the_base(tiny_base: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_base)
    plain = load_model(tiny_base, config, None, 0).model
    finder = load_model(tiny_base, config, Task.SPANS, 0).model  # `transformer`, there `model`
    for name, weight in plain.base_model.state_dict().items():
        assert torch.equal(finder.base_model.state_dict()[name], weight)


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        (
            WRITTEN, [],
            "data.jsonl has lines with prompt and completion, for task generate, but the base "
            "(bert) is an encoder, which does not generate text: it needs lines with text and "
            "label, or text, pair and label, or text and labels, or text, pair and labels, or text "
            "and score, or text, pair and score, or tokens and tags, or question, context and "
            "answer",
        ),
        (LABELLED, ["--task", "generate"], "has lines with text and label, for task generate, but"),
        (
            TAGGED, ["--task", "classify"],
            "task is 'classify', but data.jsonl has lines with tokens and tags, for task tag; "
            "classify needs lines with text and label or text, pair and label or text and labels",
        ),
        (LABELLED, ["--task", "SEQ_CLS"], "task is 'SEQ_CLS'; expected one of generate, class"),
        (LABELLED[::2], [], "data.jsonl has only the label 'warm'; expected two or more"),
        (
            [{"text": "a" * 99, "label": "b"}, {"text": "b", "label": "c"}], [],
            f"data.jsonl, line 1 has 101 tokens; the limit is {LENGTH}",
        ),
        (SEVERAL[1:2], [], "data.jsonl has no label in any line"),
        (SCORED, ["--task", "generate"], "has lines with text, pair and score, for"),
        (
            [{"text": "x", "label": "b" * 257}, {"text": "b", "label": "c"}], [],
            "expected names of 1 to 256 characters",
        ),
    ],
)  # fmt: skip
def test_what_an_encoder_is_not_for_is_refused(
    loramux: Loramux, bert: Path, lines: list[dict[str, Any]], arguments: list[str],
    message: str,
) -> None:  # fmt: skip
    write(Path("data.jsonl"), lines)
    done = loramux(
        "train", "--base", str(bert), "--data", "data.jsonl", "--eval-share", "0", *arguments
    )
    assert done.code == 1
    assert message in done.errors
    assert [path.name for path in Path().iterdir()] == ["data.jsonl"]


def test_what_a_writer_is_not_for_is_refused(loramux: Loramux, writer: Path) -> None:
    for lines, arguments, what in (
        (PAIRS, [], "text, pair and label, for task classify"),
        (TAGGED, [], "tokens and tags, for task tag"),
        (LABELLED, ["--task", "classify"], "text and label, for task classify"),
    ):
        write(Path("data.jsonl"), lines)
        done = loramux(
            "train", "--base", str(writer), "--data", "data.jsonl", "--eval-share", "0", *arguments
        )
        assert (
            f"has lines with {what}, but the base (m2m_100) is an encoder-decoder, which supports "
            "generation only: it needs lines with prompt and completion, or text and label"
        ) in done.errors


def test_keys_and_values_before_a_text_are_refused_where_peft_has_none(
    loramux: Loramux, tmp_path: Path
) -> None:
    base = save_encoder_base("distilbert", tmp_path / "base")
    wordpiece().save_pretrained(str(base))
    write(Path("data.jsonl"), LABELLED)
    done = loramux("train", "--base", str(base), "--data", "data.jsonl", "--method", "prefix")
    assert (
        "method prefix cannot be trained: PEFT fails with DistilBertForSequenceClassification: "
        "ValueError: Model does not support past key values"
    ) in done.errors


@pytest.mark.parametrize("method", ["adalora", "ia3", "prompt"])
def test_a_writer_is_trained_by_other_methods(
    loramux: Loramux, writer: Path, method: str
) -> None:  # fmt: skip
    done = train(loramux, writer, WRITTEN * 2, "--method", method, "--epochs", "1")
    with open_package(Path(done["path"])) as (_, package):
        assert package.peft_config["task_type"] == "SEQ_2_SEQ_LM"


def test_what_is_written_begins_and_ends_as_the_base_has_it(tmp_path: Path) -> None:
    tokenizer = language_tokenizer()
    french = tokenizer.convert_tokens_to_ids(LANGUAGES[1])
    for line in ({"prompt": "ab", "completion": "c"}, {"text": "ab", "label": "c"}):
        examples = read_examples(write(tmp_path / "data", [line]))
        (row,) = written_rows(examples, tokenizer, 4, 3, (french,))
        assert tokenizer.decode(row["input_ids"]) == "eng_Latnab</s>"
        assert row["labels"] == [french, *tokenizer("c", add_special_tokens=False).input_ids, END]
    with pytest.raises(PackageError, match="line 1 has 4 input tokens; the limit is 3"):
        written_rows(examples, tokenizer, 3, 3)
    with pytest.raises(PackageError, match="has 2 output tokens, including the end"):
        written_rows(examples, tokenizer, 4, 1)


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_what_is_written_has_the_pieces_of_its_own_language(tmp_path: Path) -> None:
    save_marian(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    line = {"prompt": ">>deu<< the old house", "completion": "das alte haus"}
    (row,) = written_rows(read_examples(write(tmp_path / "data", [line])), tokenizer, 90, 90)
    assert row["input_ids"] == tokenizer(line["prompt"]).input_ids
    assert row["labels"] == tokenizer(text_target=line["completion"]).input_ids
    assert row["labels"] != tokenizer(line["completion"]).input_ids


@pytest.mark.parametrize("makes", [wordpiece, byte_level, unigram])
def test_the_first_token_of_each_word_learns_its_tag(makes: Any, tmp_path: Path) -> None:
    tokenizer = makes()
    words = ["Ann", "left", "naïve🙂", "it,too"]
    tags = ["B", "O", "A", "C"]
    line = {"tokens": words, "tags": tags}
    examples, (row,) = rows(tmp_path, [line], HeadRows(tokenizer, 99, num_before=2))
    encoded = tokenizer(" ".join(words))
    assert row["input_ids"] == encoded.input_ids  # what a server makes of the text
    wanted = [-100] * len(encoded.input_ids)
    place = 0
    for word, tag in zip(words, tags, strict=True):
        wanted[encoded.char_to_token(place)] = examples.labels.index(tag)
        place += len(word) + 1
    assert row["labels"] == [-100, -100, *wanted]


def test_an_answer_is_from_its_first_token_to_its_last(tmp_path: Path) -> None:
    tokenizer = byte_level()
    line = {"question": "Who?", "context": "🙂 Ann left", "answer": "Ann left"}
    makes = HeadRows(tokenizer, 99, num_before=3)
    _, (row, none) = rows(tmp_path, [line, line | {"answer": ""}], makes)
    encoded = tokenizer("Who?", "🙂 Ann left")
    assert row["input_ids"] == encoded.input_ids
    assert row["start_positions"] == 3 + encoded.char_to_token(0, 2, 1)
    assert row["end_positions"] == 3 + encoded.char_to_token(0, 9, 1)
    assert (none["start_positions"], none["end_positions"]) == (3, 3)


def test_the_second_of_two_texts_is_marked_where_the_base_takes_types(
    bert: Path, tmp_path: Path
) -> None:
    tokenizer = wordpiece()
    trained = load_model(bert, AutoConfig.from_pretrained(bert), Task.SEQUENCE, 2)
    assert trained.uses_token_types(tokenizer)
    assert not trained.uses_token_types(byte_level())
    _, made = rows(tmp_path, PAIRS, HeadRows(tokenizer, 99, uses_token_types=True))
    assert made[0]["token_type_ids"] == tokenizer("a", "b").token_type_ids
    assert "token_type_ids" not in rows(tmp_path, PAIRS, HeadRows(tokenizer, 99))[1][0]


def test_padding_ends_no_text_that_a_decoder_labels(tiny_base: Path, tmp_path: Path) -> None:
    tokenizer = ending_tokenizer()
    tokenizer.pad_token = None  # as many decoders have it
    trained = load_model(tiny_base, AutoConfig.from_pretrained(tiny_base), Task.SEQUENCE, 2)
    lines = [*LABELLED, {"text": "a longer one", "label": "cold"}]
    _, made = rows(tmp_path, lines, HeadRows(tokenizer, 99))
    pad = trained.padding(tokenizer, Task.SEQUENCE, made)
    assert pad != tokenizer.eos_token_id == END
    model = trained.model.eval()
    with torch.inference_mode():
        together = model(**Collator(pad)(made)).logits
        alone = [model(**Collator(pad)([row])).logits[0] for row in made]
        model.config.pad_token_id = -1
        wanted = [model(**Collator(pad)([row])).logits[0] for row in made]
    torch.testing.assert_close(together, torch.stack(wanted), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.stack(alone), torch.stack(wanted), rtol=0, atol=1e-5)


def test_positions_that_begin_behind_padding_leave_less_room(tmp_path: Path) -> None:
    for name, room in (("roberta", LENGTH - 2), ("bert", LENGTH), ("t5", 4096)):
        base = save_encoder_base(name, tmp_path / name)
        task = None if name == "t5" else Task.TOKENS
        assert load_model(base, AutoConfig.from_pretrained(base), task, 2).room == room
