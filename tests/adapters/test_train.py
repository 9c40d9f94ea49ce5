"""`loramux train`: what it learns, what it notes, and what it refuses."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from loramux_adapters import PackageError, open_package
from loramux_adapters.train.examples import Labelled, Question, read_examples
from loramux_adapters.train.rows import Collator, Row, rows_of, split
from tests.support.command_line import Loramux
from tests.support.models import byte_tokenizer

LABELLED = [
    {"text": f"{word} {number}", "label": label}
    for number in range(6)
    for word, label in (("sun", "warm"), ("ice", "cold"))
]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def listed(row: Row) -> list[int]:
    tokens = row["input_ids"]
    assert isinstance(tokens, list)
    return cast(list[int], tokens)


def train(loramux: Loramux, base: Path, *more: str) -> dict[str, Any]:
    """Train on `LABELLED` and return what the command printed."""
    data = write(Path("weather.jsonl"), LABELLED)
    done = loramux(
        "train", "--base", str(base), "--data", str(data), "--threads", "1", "--json",
        "--eval-share", "0.25", "--batch-size", "3", "--rank", "4", "--epochs", "4",
        "--lr", "0.03", *more,
    )  # fmt: skip
    assert done.code == 0, done.errors
    found: dict[str, Any] = json.loads(done.output)
    return found


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "adalora"])
def test_a_trained_adapter_is_a_package_that_notes_its_making(
    loramux: Loramux, tiny_base: Path, method: str
) -> None:
    done = train(loramux, tiny_base, "--method", method)
    before, *_, after = [point["loss"] for point in done["evaluation"]]
    assert after < 0.8 * before
    assert [point["step"] for point in done["evaluation"]] == [0, 3, 6, 9, 12]
    assert [point["step"] for point in done["training"]] == list(range(1, 13))
    with open_package(Path(done["path"])) as (_, package):
        notes: Any = package.notes
        assert package.peft_config["use_rslora"] == (method == "rslora")
    assert notes["labels"] == ["cold", "warm"]
    (step,) = notes["provenance"]["steps"]
    digest = read_examples(Path("weather.jsonl")).digest
    assert step["data"] == {"sha256": digest, "examples": 12}
    assert step["arguments"]["method"] == method
    assert notes["evaluation"]["eval_loss"] == after
    assert notes["evaluation"]["eval_loss_before"] == before
    assert loramux("verify", done["path"], "--base", str(tiny_base)).code == 0


def test_equal_input_gives_equal_bytes_and_another_seed_others(
    loramux: Loramux, tiny_base: Path
) -> None:
    digests = [
        train(loramux, tiny_base, "--seed", seed, "--epochs", "1")["digest"]
        for seed in ("1", "1", "2")
    ]
    assert digests[0] == digests[1] != digests[2]


def test_targets_are_the_layers_that_change(loramux: Loramux, tiny_base: Path) -> None:
    done = train(loramux, tiny_base, "--targets", "q_proj,mlp.up_proj", "--epochs", "1")
    with open_package(Path(done["path"])) as (_, package):
        assert package.target_modules == ["q_proj", "up_proj"]


def test_ia3_is_trained(loramux: Loramux, tiny_base: Path) -> None:
    done = train(loramux, tiny_base, "--method", "ia3", "--epochs", "1", "--lr", "0.1")
    with open_package(Path(done["path"])) as (_, package):
        assert package.method == "ia3"
        assert package.edits and not package.modules
    assert loramux("verify", done["path"], "--base", str(tiny_base)).code == 0


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_are_trained(loramux: Loramux, tiny_base: Path, method: str) -> None:
    done = train(loramux, tiny_base, "--method", method, "--epochs", "2", "--lr", "0.3")
    before, *_, after = [point["loss"] for point in done["evaluation"]]
    assert after < before
    with open_package(Path(done["path"])) as (_, package):
        assert package.method == f"{method}_tuning"
        assert package.virtual is not None
        assert package.virtual.count == 4  # the rank
        assert package.virtual.has_cache == (method == "prefix")
    assert loramux("verify", done["path"], "--base", str(tiny_base)).code == 0


def test_the_losses_are_drawn(loramux: Loramux, tiny_base: Path) -> None:
    train(loramux, tiny_base, "--epochs", "1", "--plot", "losses.png")
    assert Path("losses.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "prefix", "--rank", "256"], "the number of virtual tokens, is 256; the base"),
        (["--method", "prompt", "--rank", "250"], "including the end token; the limit is 6"),
        (["--method", "qlora"], "method is 'qlora'; expected one of lora, rslora,"),
        (["--targets", "qproj"], "target 'qproj' is not a layer of the base; it has down_pr"),
        (["--eval-share", "0.01"], "an eval_share of 0.01 of 12 examples is 0"),
        (["--epochs", "0"], "epochs is 0; it must be 1 or more"),
        (["--rank", "513"], "r is 513; expected an integer from 1 to 512"),
        (["--lr", "1e30"], "is too high"),
    ],
)
def test_a_mistake_is_named_and_leaves_no_package(
    loramux: Loramux, tiny_base: Path, arguments: list[str], message: str
) -> None:
    write(Path("data.jsonl"), LABELLED)
    done = loramux(
        "train", "--base", str(tiny_base), "--data", "data.jsonl", "--threads", "1", *arguments
    )
    assert done.code == 1
    assert message in done.errors
    assert done.errors.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["data.jsonl"]


def test_a_decoder_learns_text_and_label_as_a_question_and_its_answer(tmp_path: Path) -> None:
    found = read_examples(write(tmp_path / "data", LABELLED[:2]))
    assert found.examples == (Labelled("sun 0", "warm", 1), Labelled("ice 0", "cold", 2))
    assert found.labels == ("cold", "warm")
    tokenizer = byte_tokenizer()
    texts = [tokenizer.decode(row["input_ids"]) for row in rows_of(found, tokenizer, 99)]
    assert texts == ["<s>sun 0 -> warm</s>", "<s>ice 0 -> cold</s>"]


def test_an_answer_begins_where_the_line_says_or_where_it_is_first(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"question": "q", "context": "🙂 no, no", "answer": "no"}
    lines = [asked, asked | {"start": 6}, asked | {"answer": ""}]
    found = read_examples(write(tmp_path / "data", lines))
    context = "🙂 no, no"
    assert found.examples == (
        Question("q", context, 2, 4, 1),
        Question("q", context, 6, 8, 2),
        Question("q", context, 0, 0, 3),
    )


ASKED = b'{"question": "q", "context": "abc", "answer": '
GOOD = b'{"prompt": "a", "completion": "b"}\n'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"", "is empty; a line is"),
        (GOOD + b"{\n", "line 2 is not valid JSON"),
        (GOOD + b"\n", "line 2 is not valid JSON"),
        (GOOD + b"[1]\n", "line 2 is not a JSON object"),
        (GOOD + b"\xff\n", "line 2 is not UTF-8"),
        (b'{"prompt": "a"}\n', "line 1 has the keys ['prompt']; a line is"),
        (b'{"prompt": "a", "completion": 1}\n', "line 1: completion is 1; a line is"),
        (b'{"prompt": " ", "completion": "b"}\n', "line 1: prompt is ' '; a line is"),
        (
            GOOD + b'{"text": "a", "label": "b"}\n',
            "line 2 has text and label, but the lines before have prompt and completion; all",
        ),
        (b" " * (1 << 21), "line 1 is above 1048576 bytes"),
        (b'{"tokens": ["a", "b"], "tags": ["X"]}', "line 1 has 2 tokens and 1 tags; expected one"),
        (b'{"tokens": [], "tags": []}', "line 1: tokens is []; a line is"),
        (b'{"tokens": ["a"], "tags": [1]}', "line 1: tags is [1]; a line is"),
        (b'{"text": "a", "label": "b", "start": 0}', "line 1 has the keys ['label', 'start', 't"),
        (ASKED + b'"d"}', "line 1: answer is 'd', which is not in the context"),
        (ASKED + b'"b", "start": 0}', "answer is 'b', but at start, 0, the context has 'a'; start"),
        (ASKED + b'"", "start": 0}', "and must be omitted if there is no answer"),
        (ASKED + b'"b", "start": 3}', "expected a position in the context, which has 3 char"),
        (ASKED + b'"b", "start": true}', "start is True; expected a position in the context"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, lines: bytes, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(lines)
    with pytest.raises(PackageError) as caught:
        read_examples(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_only_completions_and_the_end_are_learned(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    data = write(tmp_path / "data", [{"prompt": "ab", "completion": "c"}])
    (row,) = rows_of(read_examples(data), tokenizer, 5)
    assert tokenizer.decode(row["input_ids"]) == "<s>abc</s>"
    assert row["labels"] == [-100, -100, -100, *listed(row)[3:]]
    batch = Collator(pad_id=0)([row, {"input_ids": [1], "labels": [1]}])
    assert batch["input_ids"][1].tolist() == [1, 0, 0, 0, 0]
    assert batch["labels"][1].tolist() == [1, -100, -100, -100, -100]
    assert batch["attention_mask"][1].tolist() == [1, 0, 0, 0, 0]


def test_an_example_that_is_too_long_is_named(tmp_path: Path) -> None:
    data = write(tmp_path / "data", [{"prompt": "ab", "completion": "c"}])
    with pytest.raises(
        PackageError, match="line 1 has 5 tokens, including the end token; the limit is 4"
    ):
        rows_of(read_examples(data), byte_tokenizer(), 4)


def test_a_split_keeps_each_row_once() -> None:
    rows: list[Row] = [{"input_ids": [number], "labels": []} for number in range(9)]
    learned, kept = split(rows, 3, seed=1)
    assert len(kept) == 3
    assert sorted(listed(row)[0] for row in learned + kept) == list(range(9))
    assert split(rows, 3, seed=2)[1] != kept
