"""An adapter's own vocabulary: how many tokens there are with it, and what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loramux_adapters import PackageError, check_fit, open_package
from loramux_adapters.added_tokens import added_tokens_of
from loramux_adapters.contents import Contents
from loramux_adapters.kinds import read_contents
from loramux_adapters.manifest import check_notes
from loramux_adapters.unpack import unpack
from loramux_adapters.vocabulary import BaseVocabulary
from loramux_server.store.check import check_package
from tests.adapters.files import CONFIG, MODULE, write_folder
from tests.adapters.test_contents import LORA, infos
from tests.adapters.test_saved import EMBED, HEAD, P
from tests.support.bases import ROOMY
from tests.support.models import byte_tokenizer

BOTH = CONFIG | {"modules_to_save": ["embed_tokens", "lm_head"]}
WEIGHT = f"{EMBED}.weight"
ROWS = ".token_adapter.trainable_tokens_delta"
UNTIED = BaseVocabulary("model.embed_tokens", "lm_head", 9, 9)
TIED = BaseVocabulary("model.embed_tokens", "lm_head", 9, 9, is_tied=True)


def tokens(*added: int) -> dict[str, Any]:
    return CONFIG | {"trainable_token_indices": list(added)}


@pytest.mark.parametrize(
    ("base", "config", "shapes", "size"),
    [
        (UNTIED, CONFIG, {}, 0),
        (UNTIED, BOTH, {WEIGHT: [9, 4], HEAD: [9, 4]}, 0),
        (UNTIED, BOTH, {WEIGHT: [11, 4], HEAD: [11, 4]}, 11),
        (UNTIED, BOTH, {WEIGHT: [8, 4], HEAD: [8, 4]}, 8),
        (TIED, CONFIG, {f"{EMBED}.base_layer.weight": [11, 4]}, 11),
        (TIED, tokens(10, 9, 2), {f"{EMBED}{ROWS}": [3, 4]}, 11),
        (UNTIED, tokens(2), {f"{EMBED}{ROWS}": [1, 4]}, 0),
        (UNTIED, tokens(9), {f"{EMBED}{ROWS}": [1, 4], f"{P}lm_head{ROWS}": [1, 4]}, 10),
        # Rows are those of the resized weight.
        (TIED, tokens(10), {f"{EMBED}{ROWS}": [1, 4], f"{EMBED}.base_layer.weight": [11, 4]}, 11),
    ],
)
def test_the_rows_say_how_many_tokens_there_are(
    base: BaseVocabulary, config: dict[str, Any], shapes: dict[str, list[int]], size: int
) -> None:
    _, contents = read_contents(config, infos(LORA | shapes))
    assert base.size_for(contents) == size
    layers = {MODULE: (4, 3), "model.embed_tokens": (9, 4), "lm_head": (4, 9)}
    parameters = {"model.embed_tokens.weight": (9, 4), "lm_head.weight": (9, 4)}
    check_fit(contents, *base.resized(contents, layers, parameters))


@pytest.mark.parametrize(
    ("base", "config", "shapes", "message"),
    [
        (
            UNTIED,
            BOTH,
            {WEIGHT: [11, 4]},
            "11 tokens in module model.embed_tokens and 9 in lm_head",
        ),
        (TIED, BOTH, {WEIGHT: [11, 4]}, "with a resized vocabulary, save both"),
        (UNTIED, tokens(9), {f"{EMBED}{ROWS}": [1, 4]}, "10 tokens in module model.embed_tokens"),
        (TIED, tokens(10), {f"{EMBED}{ROWS}": [1, 4]}, "a row for token 10 but none for 9"),
    ],
)
def test_a_vocabulary_that_is_there_in_part_is_refused(
    base: BaseVocabulary, config: dict[str, Any], shapes: dict[str, list[int]], message: str
) -> None:
    _, contents = read_contents(config, infos(LORA | shapes))
    with pytest.raises(PackageError) as caught:
        base.size_for(contents)
    assert message in str(caught.value)
    assert caught.value.reason == "ADAPTER_BASE_MISMATCH"


def write_tokenizer(folder: Path, *added: object) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": list(added)}))


def packed(folder: Path) -> Any:
    with open_package(folder) as (_, package):
        return package.notes.get("added_tokens")


def write_adapter(folder: Path, config: dict[str, Any], shapes: dict[str, list[int]]) -> Path:
    zeros = {
        name: ("F32", shape, bytes(4 * math.prod(shape))) for name, shape in (LORA | shapes).items()
    }
    return write_folder(folder, zeros, config)


def test_tokens_that_a_tokenizer_adds_are_noted_where_embeddings_change(tmp_path: Path) -> None:
    call = {"id": 9, "content": "<call>", "special": False, "lstrip": True, "rstrip": False}
    end = {"id": 10, "content": "<end>", "special": True}
    plain = write_adapter(tmp_path / "plain", CONFIG, {})
    write_tokenizer(plain, call, end)
    assert packed(plain) is None
    whole = write_adapter(tmp_path / "whole", BOTH, {WEIGHT: [11, 4], HEAD: [11, 4]})
    write_tokenizer(whole, end, call)
    noted = [{"id": 9, "content": "<call>", "lstrip": True}, end]
    assert packed(whole) == noted
    rows = write_adapter(tmp_path / "rows", tokens(9), {f"{EMBED}{ROWS}": [1, 4]})
    write_tokenizer(rows, call, end)
    assert packed(rows) == noted[:1]
    with open_package(whole) as (file, package):
        unpack(file, package, tmp_path / "again")
    assert packed(tmp_path / "again") == noted
    assert added_tokens_of(tmp_path, Contents()) == []


def test_what_a_tokenizer_has_names_for_is_noted(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "plain", CONFIG, {})
    config = {
        "bos_token": None,
        "eos_token": {"content": "<|im_end|>", "lstrip": False},
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "add_bos_token": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    noted = {"eos_token": "<|im_end|>", "unk_token": "<unk>"}
    with open_package(folder) as (file, package):
        assert package.notes["special_tokens"] == noted
        unpack(file, package, tmp_path / "again")
    with open_package(tmp_path / "again") as (_, package):
        assert package.notes["special_tokens"] == noted
    (folder / "tokenizer_config.json").write_text('{"eos_token": 2}')
    with pytest.raises(PackageError, match="eos_token is 2; expected 1 to 256"):
        packed(folder)
    with pytest.raises(PackageError, match="'end' is not a known key; expected one of bos_tok"):
        check_notes({"special_tokens": {"end": "x"}}, "loramux.json")


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ([{"id": -1, "content": "a"}], "expected an id from 0"),
        (
            [{"id": i, "content": f"{i:256}"} for i in range(200)],
            "added tokens have 51200 characters in total; the limit is 32768",
        ),
        ([{"id": True, "content": "a"}], "expected an id from 0"),
        ([{"id": 9, "content": ""}], "a content of 1 to 256 characters"),
        ([{"id": 9, "content": "a" * 257}], "a content of 1 to 256 characters"),
        ([{"id": 9, "content": "a", "special": 1}], "true or false for special"),
        ([7], "added token 7"),
        (
            [{"id": 9, "content": "a"}, {"id": 9, "content": "b"}],
            "added tokens have the same id",
        ),
        ([{"id": 9, "content": "a"}, {"id": 8, "content": "a"}], "have the same content"),
        ([{"id": n, "content": str(n)} for n in range(1025)], "1025 added tokens; the limit is"),
    ],
)
def test_malformed_tokens_are_refused(added: list[object], message: str) -> None:
    with pytest.raises(PackageError) as caught:
        check_notes({"added_tokens": added}, "loramux.json")
    assert message in str(caught.value)
    assert caught.value.reason == "INVALID_ADAPTER_CONFIG"


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"id": 9, "content": "<call>"}, "token 9 is '<call>'; in the base it is"),
        ({"id": 261, "content": "<call>"}, "has id 261, but 259 in the base's tokenizer"),
        ({"id": 262, "content": "<call>"}, "token 262 is beyond the vocabulary of 262"),
    ],
)
def test_tokens_that_do_not_follow_the_base_are_refused(
    added: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a", BOTH, {WEIGHT: [262, 4], HEAD: [262, 4]})
    write_tokenizer(folder, added)
    base = replace(
        ROOMY, layers={MODULE: (4, 3), "model.embed_tokens": (259, 4), "lm_head": (4, 259)},
        parameters={"model.embed_tokens.weight": (259, 4), "lm_head.weight": (259, 4)},
        vocabulary=BaseVocabulary("model.embed_tokens", "lm_head", 259, 259), vocab_size=259,
        tokenizer_json=byte_tokenizer().backend_tokenizer.to_str(),
    )  # fmt: skip
    with open_package(folder) as (file, _), pytest.raises(PackageError) as caught:
        check_package(file, file.seek(0, 2), base)
    assert message in str(caught.value)
    assert caught.value.reason == "ADAPTER_BASE_MISMATCH"
