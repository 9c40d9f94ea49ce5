"""BPE in the formats of fastBPE and subword-nmt, for PhoBERT and BERTweet.

There, `@@` marks a piece of the vocabulary after which the word continues. The tokenizers library
marks the end of a word instead. Pieces that merges produce and the vocabulary lacks have ids beyond
the base's (`extra_tokens.py`).

Token ids are those of transformers, unless the merges are not in the order in which they were
learned.
"""

from collections.abc import Mapping

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from loramux_server.text.pieces.names import FIRST_EXTRA

_GOES_ON = "@@"
_END = "</w>"
_SPACES = (
    r"\x{9}-\x{d}\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}"
    r"\x{205f}\x{3000}"
)
"""White space as Python defines it."""
_WORD = rf"[^{_SPACES}]+\n?"
"""A word, including a line break after it."""


def read_vocabulary(text: str, first: list[str]) -> dict[str, int]:
    """Return the tokens of a vocabulary and their ids.

    Args:
        text: One token and its count per line.
        first: Tokens that precede those.

    Raises:
        ValueError: A line is malformed.
    """
    found = {token: number for number, token in enumerate(first)}
    for line in text.splitlines():
        token, space, _ = line.strip().rpartition(" ")
        if not space:
            raise ValueError(f"vocab.txt: line {line!r} is not a token followed by a number")
        found[token] = len(found)
    return found


def make_tokenizer(
    codes: str, vocabulary: Mapping[str, int], unknown: str, control: set[str]
) -> Tokenizer:
    """Return the tokenizer of the merges `codes`, whose tokens have the ids of `vocabulary`.

    Args:
        codes: Two pieces and the count of their pair per line.
        vocabulary: Text -> id, of all tokens.
        unknown: The token for other pieces.
        control: Tokens that no text is encoded to.

    Raises:
        ValueError: A line is malformed.
    """
    merges: dict[tuple[str, str], None] = {}
    for line in codes.split("\n")[:-1]:
        one, other = _pair(line)
        merges.pop((one, other), None)  # the last duplicate wins
        merges[one, other] = None
    ids = {_name_of(text, control): token for text, token in vocabulary.items()}
    needed = dict.fromkeys(piece for pair in merges for piece in (*pair, "".join(pair)))
    if lacking := [piece for piece in needed if piece not in ids]:
        first = max(ids.values()) + 1
        ids |= {piece: first + place for place, piece in enumerate((FIRST_EXTRA, *lacking))}
    model = models.BPE(vocab=ids, merges=list(merges), unk_token=unknown, end_of_word_suffix=_END)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
    tokenizer.decoder = decoders.BPEDecoder(_END)
    return tokenizer


def _pair(line: str) -> tuple[str, str]:
    parts = line.split()
    if len(parts) != 3:
        raise ValueError(f"bpe.codes: line {line!r} is not a pair followed by a number")
    return parts[0], parts[1]


def _name_of(text: str, control: set[str]) -> str:
    if text in control:
        return text
    return text[: -len(_GOES_ON)] if text.endswith(_GOES_ON) else text + _END
