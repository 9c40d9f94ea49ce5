"""How SentencePiece replaces characters, in steps of the tokenizers library.

A SentencePiece model has a list of what is replaced, mostly NFKC and some white space, and at each
place of a text takes the longest entry. The tokenizers library reads the list, too, but looks up
what is seen as one character, and of entries for it takes the shortest, which loses accents. So
where a list is made of NFKC, that goes before it, and nothing is left for several characters
together.

What becomes of a text is the same but for this:

- Marks of which one stands between another and the letter with which that makes one character:
  of an `a` with a cedilla and an acute the acute goes to the `a`. Behind what is replaced by
  several characters, such as a ligature, a mark goes to the last of them.
- Characters of later versions of Unicode than the list's are replaced where NFKC has them.
- In a list that is not NFKC a mark behind a character that is replaced may be lost, and several
  characters that are replaced together, of six bytes or more, are replaced one by one.
"""

import sys
import unicodedata
from collections import defaultdict
from collections.abc import Collection
from functools import cache

from tokenizers import Regex, normalizers

from loramux_server.text.pieces.names import SPACE

_NFKC = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf")
"""Names of lists that are made of NFKC."""
_WAVE = "\uff5e"
"""Character that NFKC replaces, and some of the lists do not."""


def replacing(name: str, charsmap: bytes, marks: tuple[str, str]) -> list[normalizers.Normalizer]:
    """Return what replaces characters of a text as the list `charsmap` called `name` says.

    Args:
        name: As SentencePiece calls it.
        charsmap: The list, in SentencePiece's own format; empty for none.
        marks: Two characters that no text has.
    """
    if not charsmap:
        return []
    listed = normalizers.Precompiled(charsmap)
    if name not in _NFKC:
        return [listed]
    kept, parting = marks
    found: list[normalizers.Normalizer] = []
    if listed.normalize_str(SPACE) == " ":
        found.append(normalizers.Replace(SPACE, " "))
    if keeps_wave := listed.normalize_str(_WAVE) == _WAVE:
        found.append(normalizers.Replace(_WAVE, kept))
    # It would bring marks into an order, too.
    found.append(normalizers.Replace(Regex(_out_of_order()), parting))
    found += [normalizers.NFKC(), normalizers.Replace(parting, ""), listed]
    if keeps_wave:
        found.append(normalizers.Replace(kept, _WAVE))
    return found


def class_of(characters: Collection[str]) -> str:
    """Return what stands between brackets for one of `characters` in an expression."""
    runs: list[list[int]] = []
    for point in sorted(map(ord, characters)):
        if runs and point == runs[-1][1] + 1:
            runs[-1][1] = point
        else:
            runs.append([point, point])
    return "".join(rf"\x{{{first:x}}}-\x{{{last:x}}}" for first, last in runs)


@cache
def _out_of_order() -> str:
    """Return what is between two marks that Unicode has in the other order."""
    by_order = defaultdict(set)
    for point in range(sys.maxunicode + 1):
        if order := unicodedata.combining(chr(point)):
            by_order[order].add(chr(point))
    seen, pairs = set(by_order[min(by_order)]), []
    for order in sorted(by_order)[1:]:
        pairs.append(f"(?<=[{class_of(by_order[order])}])(?=[{class_of(seen)}])")
        seen |= by_order[order]
    return f"(?=[{class_of(seen)}])(?:{'|'.join(pairs)})"
