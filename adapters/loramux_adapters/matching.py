"""How literal names in a PEFT config match modules."""


def tails(module: str) -> list[str]:
    """Return the names by which PEFT finds `module`: its full name and all its suffixes."""
    found = [module]
    while "." in found[-1]:
        found.append(found[-1].partition(".")[2])
    return found
