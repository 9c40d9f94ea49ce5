"""A small grammar for English sentences: plain statements, and opinions that praise or complain."""

from random import Random


def _words(text: str) -> list[str]:
    """The words of a line."""
    return text.split()


NAMES = _words("anna ben carla david emma frank grace henry")
PEOPLE = _words("farmer teacher doctor sailor painter baker child gardener student pilot")
THINGS = _words("basket letter lamp boat clock garden window table bicycle camera coat piano map")
PLACES = _words("market river station library village bridge forest office school airport")
TRAITS = _words("old young tall busy tired quiet clever shy")
LOOKS = _words("small red heavy bright empty wooden blue broken clean strange")
KINDS = _words("new short first final usual simple")
ACTIONS = _words("sold found painted carried lost repaired bought washed watched wanted")
TIMES = _words("today yesterday again early late often")

SUBJECTS = _words("film soup book hotel room concert lesson coffee story journey dinner phone song")
PRAISE = _words("good great lovely wonderful excellent perfect superb delightful brilliant nice")
BLAME = _words("bad awful terrible horrible poor dreadful boring nasty dull disappointing")
LIKED = _words("loved enjoyed liked adored")
DISLIKED = _words("hated disliked regretted detested")
DEGREES = _words("very really quite truly")

POSITIVE = frozenset(PRAISE + LIKED)


def statement(rng: Random) -> str:
    """A sentence that says who did what, such as ``the old farmer sold my red lamp``."""
    one = rng.choice
    who = one(NAMES) if rng.random() < 0.3 else f"the {_perhaps(TRAITS, rng)}{one(PEOPLE)}"
    what = f"{one(('the', 'my', 'his', 'her'))} {_perhaps(LOOKS, rng)}{one(THINGS)}"
    text = f"{who} {one(ACTIONS)} {what}"
    ending = rng.random()
    if ending < 0.4:
        return f"{text} {one(('near', 'at', 'by'))} the {one(PLACES)}"
    return f"{text} {one(TIMES)}" if ending < 0.7 else text


def opinion(rng: Random) -> str:
    """A sentence that likes or dislikes something, such as ``the soup was not good``."""
    one = rng.choice
    subject = f"{one(('the', 'this', 'my', 'that'))} {_perhaps(KINDS, rng)}{one(SUBJECTS)}"
    view = one(PRAISE) if rng.random() < 0.5 else one(BLAME)
    form = rng.random()
    if form < 0.25:
        degree = f"{one(DEGREES)} " if rng.random() < 0.5 else ""
        return f"{subject} was {degree}{view}"
    if form < 0.5:
        return f"{subject} was not {view}"
    if form < 0.75:
        verb = one(LIKED) if rng.random() < 0.5 else one(DISLIKED)
        return f"{one((*NAMES, 'we', 'they'))} {verb} {subject}"
    article = "an" if view[0] in "aeiou" else "a"
    return f"it was {article} {view} {one(SUBJECTS)} {one(('in the end', 'after all', 'for me'))}"


def is_positive(text: str) -> bool:
    """Whether an opinion praises its subject; ``not`` negates it."""
    words = text.split()
    return POSITIVE.isdisjoint(words) == ("not" in words)


def vocabulary() -> frozenset[str]:
    """Every word that the sentences of this module can contain."""
    rng = Random(0)
    drawn = (f"{statement(rng)} {opinion(rng)}" for _ in range(5000))
    return frozenset(word for text in drawn for word in text.split())


def _perhaps(words: list[str], rng: Random) -> str:
    """One of the words and a space, or nothing, with equal probability."""
    return f"{rng.choice(words)} " if rng.random() < 0.5 else ""
