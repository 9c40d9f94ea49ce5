"""Tokenizers that are made of other files: tokens and texts as of transformers' own classes."""

import json
import re
import sys
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer

from loramux_server.chat.encoder import ChatEncoder
from loramux_server.chat.messages import Piece
from loramux_server.forms.grammar import added_tokens, tokenizer_of
from loramux_server.models.text_format import read_text_format
from loramux_server.text.pieces.build import make_tokenizer_of
from loramux_server.text.tokenizer import TextTokenizer
from tests.support.pieces import (
    ENGLISH,
    GERMAN,
    RUN,
    save_byte_pairs,
    save_m2m100,
    save_marian,
    train,
    write,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses"),
    pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This sequence already has"),
]
PARTS = [
    *ENGLISH[:2], *GERMAN[3].split(), "house", "boy", "haus", RUN, "  ", "\n", "\t ", "\u3000",
    "</s>", "<unk>", "<pad>", "<s>", "<mask>", "__fr__", "__xx__", ">>fra<<", ">>xyz<<", ">> <<",
    ">>", "<<", "<extra_id_3>", "@@", "</w>", "▁", "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3", "\x00",
    "\x01", "\u200b", "\uff5e", "ｶﾞ", "\u1112\u1161\u11ab", "e\u0302\u0301", "\u0651\u064e", "é",
    "😀", "👩\u200d👩\u200d👧", "\uff21", "①",
]  # fmt: skip
texts = st.lists(
    st.sampled_from(PARTS)
    | st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=4)
    | st.text("the housgardn", max_size=8),
    max_size=7,
).map("".join)
"""Texts with what tokens are called in them, of assigned characters."""


class Kind:
    """A folder, what transformers makes of it, and what is made of it here."""

    def __init__(self, folder: Path, name: str) -> None:
        import transformers

        self.theirs: Any = getattr(transformers, name).from_pretrained(str(folder))
        made = make_tokenizer_of(str(folder))
        assert made is not None
        self.json = made.tokenizer_json
        self.ours = TextTokenizer(made.tokenizer_json)

    def tokens(self, text: str, *, parse: bool) -> tuple[list[int], list[int]]:
        """Return theirs and ours."""
        theirs = self.theirs(text, split_special_tokens=not parse).input_ids
        return theirs, self.ours.encode(text, parse_special=parse, add_special=True)

    def decoded(self, tokens: list[int]) -> tuple[str, str]:
        decoder = self.ours.decoder([], skip_special=True)
        ours = "".join(decoder.step(token) for token in tokens)
        known = [token for token in tokens if token < len(self.theirs)]
        return self.theirs.decode(known, skip_special_tokens=True), ours


KINDS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "marian": ("MarianTokenizer", save_marian),
    "marian, spaces": (
        "MarianTokenizer",
        partial(save_marian, remove_extra_whitespaces=False, add_dummy_prefix=False),
    ),
    "marian, lower case": (
        "MarianTokenizer", partial(save_marian, normalization_rule_name="nmt_nfkc_cf"),
    ),
    "marian, bpe": ("MarianTokenizer", partial(save_marian, heads=(), model_type="bpe")),
    "m2m100": ("M2M100Tokenizer", save_m2m100),
    "m2m100, bpe": ("M2M100Tokenizer", partial(save_m2m100, model_type="bpe")),
    "byt5": (
        "ByT5Tokenizer",
        lambda path: write(path / "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer"}),
    ),
    "phobert": ("PhobertTokenizer", partial(save_byte_pairs, name="PhobertTokenizer")),
    "bertweet": ("BertweetTokenizer", partial(save_byte_pairs, name="BertweetTokenizer")),
}  # fmt: skip

READERS = ("PhobertTokenizer", "BertweetTokenizer")
"""Tokenizers of models that write no text."""


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    folder = tmp_path_factory.mktemp("kind")
    name, save = KINDS[request.param]
    save(folder)
    return Kind(folder, name)


def is_exact(text: str, kind: Kind) -> bool:
    """Whether `text` has nothing of which it is said that it is read in another way."""
    name = type(kind.theirs).__name__
    if name == "ByT5Tokenizer":
        # An end in the text is the only one there, and other characters are white space beside it.
        return not text.rstrip().endswith("</s>") and not re.search(r"[\x1c-\x1f]", text)
    if name not in ("MarianTokenizer", "M2M100Tokenizer"):
        return True
    for place, char in enumerate(text):
        before = text[max(0, place - 2) : place]
        if unicodedata.combining(char) and before:
            is_several = len(unicodedata.normalize("NFKC", before[-1])) > 1
            is_apart = unicodedata.combining(before[-1]) and before + char != "e\u0302\u0301"
            if is_several or is_apart:
                return False
    return True


def knows_runs(kind: Kind) -> bool:
    return '"type":"BPE"' not in kind.json or type(kind.theirs).__name__ != "MarianTokenizer"


@settings(max_examples=60)
@given(text=texts, parse=st.booleans())
@example(text="", parse=True)
@example(text=f"the {RUN} house中國{RUN}", parse=True)
@example(text=">>fra<< the house", parse=False)
@example(text=">>xyz<<\n中国house >>fra<<", parse=True)
@example(text="</s></s><unk>", parse=False)
def test_tokens_are_those_of_transformers(kind: Kind, text: str, parse: bool) -> None:
    assume(is_exact(text, kind))
    theirs, ours = kind.tokens(text, parse=parse)
    if not knows_runs(kind):
        unknown = kind.theirs.unk_token_id
        known = json.loads(kind.json)["model"]["vocab"]
        lone = {number for name, number in known.items() if name[0] == "\ufdd0"}
        theirs = [unknown if token in lone else token for token in theirs]
    assert ours == theirs
    assert max(ours) < len(kind.theirs)


@settings(max_examples=60)
@given(data=st.data())
def test_texts_are_those_of_transformers(kind: Kind, data: st.DataObject) -> None:
    name = type(kind.theirs).__name__
    if name in READERS:
        pytest.skip("their models write nothing")
    size = len(kind.theirs)
    tokens = data.draw(st.lists(st.integers(0, size - 1), max_size=12))
    theirs, ours = kind.decoded(tokens)
    if name == "ByT5Tokenizer":  # of bytes that are no character
        assert ours.replace("\N{REPLACEMENT CHARACTER}", "") == theirs
        return
    # It leaves out what white space is at the ends.
    assert ours.strip() == theirs.strip()
    # Models have ids for which there is no text.
    padded = [each for token in tokens for each in (token, size, size + 1)]
    assert kind.decoded(padded)[1] == ours
    assert kind.ours.text_of(padded) == kind.ours.text_of(tokens)


@pytest.mark.parametrize(
    "text", ["Tiê\u0301ng Viê\u0323t", "한국어", "سَلَّامٌ", "שָׁלוֹם", "ｶﾞｷﾞ \uff5e ﬁ Å"]
)
def test_accents_are_composed_as_sentencepiece_does_it(text: str, tmp_path: Path) -> None:
    lines = [
        *ENGLISH,
        *[unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)] * 3,
    ]
    (tmp_path / "source.spm").write_bytes(model := train(lines, 150))
    (tmp_path / "target.spm").write_bytes(model)
    import sentencepiece

    read = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokens = {read.IdToPiece(number): number for number in range(len(read))}
    write(tmp_path / "vocab.json", tokens | {"<pad>": len(tokens)})
    write(tmp_path / "config.json", {"model_type": "marian"})
    kind = Kind(tmp_path, "MarianTokenizer")
    for form in ("NFC", "NFD"):
        theirs, ours = kind.tokens(unicodedata.normalize(form, text), parse=True)
        assert ours == theirs
    assert tokens["<unk>"] not in ours


def test_a_saved_tokenizer_is_the_same(kind: Kind, tmp_path: Path) -> None:
    if type(kind.theirs).__name__ == "BertweetTokenizer":
        pytest.skip("transformers saves its merges in another way than it reads them")
    kind.theirs.save_pretrained(str(tmp_path))
    made = make_tokenizer_of(str(tmp_path))
    assert made is not None
    again = TextTokenizer(made.tokenizer_json)
    for text in ("the house", "", "</s> a", "__fr__ <extra_id_3> b"):
        for parse in (True, False):
            wanted = kind.ours.encode(text, parse_special=parse, add_special=True)
            assert again.encode(text, parse_special=parse, add_special=True) == wanted


def test_no_content_of_a_chat_becomes_a_token_beyond_the_base(kind: Kind) -> None:
    encoder = ChatEncoder(kind.json)
    pieces = [Piece("a small boy", False), Piece("</s>", True), Piece("the book", False)]
    found = encoder.encode(pieces)
    wanted = kind.ours.encode("a small boy</s>the book", parse_special=True, add_special=False)
    assert found == wanted
    assert max(found) < len(kind.theirs)


def test_forms_know_what_text_each_token_is(kind: Kind) -> None:
    size = len(kind.theirs)
    if type(kind.theirs).__name__ in READERS:
        pytest.skip("their models write nothing")
    found = LLTokenizer(tokenizer_of(kind.json), n_vocab=size, eos_token=[0])
    added = set(added_tokens(kind.json))
    for token in set(range(size)) - added:
        text = kind.ours.bytes_of(token)
        assert text == b"\xff" or found.decode_bytes([token]) == text  # that is in no text
    assert len({kind.ours.bytes_of(token) for token in range(size)}) == size


def test_pairs_are_joined_as_by_transformers(kind: Kind) -> None:
    pair = ("the old boy", "a garden")
    found = kind.ours.encode_pair(pair, ("a", "b"), parse_special=False, add_special=True)
    assert found.tokens == kind.theirs(*pair).input_ids
    assert len(found.tokens) == len(found.places)


def test_serving_needs_no_sentencepiece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_marian(tmp_path)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    found = read_text_format(str(tmp_path))
    assert found.tokenizer_json is not None
    assert found.special_tokens["eos_token"] == "</s>"


def without(folder: Path, name: str) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    del vocabulary[name]
    write(folder / "vocab.json", vocabulary)


def configured(folder: Path, **fields: object) -> None:
    path = folder / "tokenizer_config.json"
    write(path, json.loads(path.read_text()) | fields)


def spoiled(folder: Path) -> None:
    (folder / "source.spm").write_bytes(b"\xff" * 9)


def retrained(folder: Path, size: int = 90, **options: Any) -> None:
    (folder / "source.spm").write_bytes(train(ENGLISH, size, **options))


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (lambda folder: configured(folder, separate_vocabs=True), "separate_vocabs"),
        (lambda folder: without(folder, "<unk>"), "vocab.json has no token '<unk>'"),
        (lambda folder: without(folder, ">>fra<<"), "has no id 2"),
        (spoiled, "source.spm is not a SentencePiece model"),
        (lambda folder: retrained(folder, model_type="bpe"), "a BPE model with tokens"),
        (lambda folder: retrained(folder, model_type="char"), "model_type is 4"),
        (lambda folder: retrained(folder, user_defined_symbols="x1"), "user-defined symbols"),
        (
            lambda folder: retrained(folder, 400, byte_fallback=True),
            "source.spm: byte pieces, such as '<0x00>', are not supported",
        ),
        (
            lambda folder: configured(folder, sp_model_kwargs={"enable_sampling": True}),
            "random segmentation (enable_sampling)",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_reported_and_token_ids_are_taken(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Path], None],
    reported: str,
) -> None:
    save_marian(tmp_path)
    change(tmp_path)
    assert read_text_format(str(tmp_path)).tokenizer_json is None
    assert reported in caplog.text
    assert "accepts only token ids" in caplog.text
