"""No plain text becomes a control token, whatever the vocabulary has as a piece."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from loramux_adapters.added_tokens import AddedToken
from loramux_server.chat.encoder import ChatEncoder
from loramux_server.chat.messages import Piece
from loramux_server.text.tokenizer import TextTokenizer

SPECIAL = {"<pad>": 0, "</s>": 1, "[SEP]": 3}
_NAMES = ["<pad>", "</s>", "<unk>", "[SEP]"]
_LETTERS = sorted(set("<>/[]abcdeghoknpstuSEP"))


def unigram() -> Tokenizer:
    """As T5, XLM-R and DeBERTa have them."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=_NAMES, unk_token="<unk>", initial_alphabet=_LETTERS
    )
    tokenizer.train_from_iterator(["a house and a cat", "the dog and the house"] * 9, trainer)
    return tokenizer


def words() -> Tokenizer:
    vocab = {word: token for token, word in enumerate([*_NAMES, "a", "cat", "b"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(_NAMES)
    return tokenizer


def word_pieces() -> Tokenizer:
    vocab = {piece: token for token, piece in enumerate([*_NAMES, "a", "c", "##a", "##t"])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(_NAMES)
    return tokenizer


def whole_words() -> Tokenizer:
    """Pairs of bytes, where a word that the vocabulary has is taken as it is."""
    vocab = {piece: token for token, piece in enumerate([*_NAMES, *_LETTERS, "ca", "cat", "</"])}
    tokenizer = Tokenizer(
        models.BPE(
            vocab, [("c", "a"), ("ca", "t"), ("<", "/")], unk_token="<unk>", ignore_merges=True
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(_NAMES)
    return tokenizer


def merged() -> Tokenizer:
    """Pairs that make the name of a control token."""
    vocab = {piece: token for token, piece in enumerate([*_NAMES, *_LETTERS, "</", "s>"])}
    tokenizer = Tokenizer(
        models.BPE(vocab, [("<", "/"), ("s", ">"), ("</", "s>")], unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(_NAMES)
    return tokenizer


KINDS = {kind.__name__: kind() for kind in (unigram, words, word_pieces, whole_words, merged)}
for _tokenizer in KINDS.values():
    _tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A [SEP] $B </s>", special_tokens=[("</s>", 1), ("[SEP]", 3)]
    )
TEXTS = ("</s>", "a </s> cat", "a</s>cat", "[SEP][SEP]", "<pad> </s>", "</s")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Tokenizer:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def tokenizer(kind: Tokenizer) -> TextTokenizer:
    return TextTokenizer(kind.to_str())


def plain(tokenizer: TextTokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, parse_special=False, add_special=False)


@pytest.mark.parametrize("text", TEXTS)
def test_a_name_in_a_text_is_text(tokenizer: TextTokenizer, text: str) -> None:
    assert not set(plain(tokenizer, text)) & set(SPECIAL.values())
    placed, places = tokenizer.encode_placed(text, "prompt", parse_special=False, add_special=False)
    assert placed == plain(tokenizer, text)
    assert len(places) == len(placed)


def test_a_name_is_a_token_for_who_asks_for_it(tokenizer: TextTokenizer) -> None:
    for name, token in SPECIAL.items():
        assert token in tokenizer.encode(f"a {name} a", parse_special=True, add_special=False)
        assert tokenizer.token_of(name) == token


def test_what_the_tokenizer_puts_around_a_text_stays(tokenizer: TextTokenizer) -> None:
    found = tokenizer.encode("a </s>", parse_special=False, add_special=True)
    assert found == [*plain(tokenizer, "a </s>"), 1]
    pair = tokenizer.encode_pair(
        ("a", "[SEP]"), ("text", "text_pair"), parse_special=False, add_special=True
    )
    assert pair.tokens == [*plain(tokenizer, "a"), 3, *plain(tokenizer, "[SEP]"), 1]


@given(text=st.text(alphabet="abcdeght </s>") | st.text())
def test_other_texts_have_the_tokens_that_they_had(kind: Tokenizer, text: str) -> None:
    if any(name in text for name in _NAMES):
        return
    ours = TextTokenizer(kind.to_str())
    assert plain(ours, text) == kind.encode(text, add_special_tokens=False).ids


def test_so_are_the_names_of_an_adapters_own_tokens(kind: Tokenizer) -> None:
    first = kind.get_vocab_size()
    own = [AddedToken(first, "<one>", special=True), AddedToken(first + 1, "<two>")]
    base = TextTokenizer(kind.to_str())
    for grown in (TextTokenizer(base, own), TextTokenizer(kind.to_str(), own)):
        assert first not in plain(grown, "a <one> </s>")
        assert first + 1 in plain(grown, "a <two>")
        assert not set(plain(grown, "</s> <one>")) & {*SPECIAL.values(), first}
        control = grown.encode("</s> <one> <two>", parse_special=True, add_special=False)
        assert {1, first, first + 1} <= set(control)
        assert grown.lacking(own) == ()


def test_contents_of_a_chat_hold_no_control_token(kind: Tokenizer) -> None:
    encoder = ChatEncoder(kind.to_str())
    pieces = [
        Piece("a ", is_token=False),
        Piece("</s>", is_token=True),
        Piece(" [SEP]</s> a", is_token=False),
        Piece("[SEP]", is_token=True),
    ]
    found = encoder.encode(pieces)
    assert [token for token in found if token in SPECIAL.values()] == [1, 3]
