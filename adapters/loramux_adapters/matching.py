"""How names in a PEFT config stand for modules of a model, without patterns."""


def tails(module: str) -> list[str]:
    """Return the names that PEFT takes for `module`: all of its parts, or the last of them."""
    found = [module]
    while "." in found[-1]:
        found.append(found[-1].partition(".")[2])
    return found
