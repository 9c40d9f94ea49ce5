"""Merges of characters in words, as fastBPE and subword-nmt write them: PhoBERT and BERTweet.

Where a word goes on behind a piece, `@@` follows that in the vocabulary. In a tokenizer of the
tokenizers library it is the other way around: what ends a word is marked. Pieces that the merges
make and the vocabulary lacks have ids beyond the base's (`beyond.py`).

Token ids are those of transformers, unless merges are not in the order in which they were learned.
"""

from collections.abc import Mapping

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from loramux_server.text.pieces.names import BEYOND

_GOES_ON = "@@"
_END = "</w>"
_SPACES = (
    r"\x{9}-\x{d}\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}"
    r"\x{205f}\x{3000}"
)
"""What is white space to Python."""
_WORD = rf"[^{_SPACES}]+\n?"
"""A word, of which a line break behind it is a part."""


def read_vocabulary(text: str, first: list[str]) -> dict[str, int]:
    """Return the tokens of a vocabulary and their ids.

    Args:
        text: Lines of a token and how often it was seen.
        first: Tokens before those.

    Raises:
        ValueError: A line is none of these.
    """
    found = {token: number for number, token in enumerate(first)}
    for line in text.splitlines():
        token, space, _ = line.strip().rpartition(" ")
        if not space:
            raise ValueError(f"vocab.txt: {line!r} is no token with a number behind it")
        found[token] = len(found)
    return found


def make_tokenizer(
    codes: str, vocabulary: Mapping[str, int], unknown: str, control: set[str]
) -> Tokenizer:
    """Return the tokenizer of the merges `codes`, whose tokens have the ids of `vocabulary`.

    Args:
        codes: Lines of two pieces and how often they were seen side by side.
        vocabulary: Text -> id, of all tokens.
        unknown: The token for other pieces.
        control: Tokens that are made of no text.

    Raises:
        ValueError: A line is none of these.
    """
    merges: dict[tuple[str, str], None] = {}
    for line in codes.split("\n")[:-1]:
        one, other = _pair(line)
        merges.pop((one, other), None)  # the last of the same counts
        merges[one, other] = None
    ids = {_name_of(text, control): token for text, token in vocabulary.items()}
    needed = dict.fromkeys(piece for pair in merges for piece in (*pair, "".join(pair)))
    if lacking := [piece for piece in needed if piece not in ids]:
        first = max(ids.values()) + 1
        ids |= {piece: first + place for place, piece in enumerate((BEYOND, *lacking))}
    model = models.BPE(vocab=ids, merges=list(merges), unk_token=unknown, end_of_word_suffix=_END)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
    tokenizer.decoder = decoders.BPEDecoder(_END)
    return tokenizer


def _pair(line: str) -> tuple[str, str]:
    parts = line.split()
    if len(parts) != 3:
        raise ValueError(f"bpe.codes: {line!r} is no pair with a number behind it")
    return parts[0], parts[1]


def _name_of(text: str, control: set[str]) -> str:
    if text in control:
        return text
    return text[: -len(_GOES_ON)] if text.endswith(_GOES_ON) else text + _END
