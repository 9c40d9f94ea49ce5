"""What the help of the command line shows."""


def cut_off(text: str) -> list[str]:
    """Return the lines of a help below its usage that are too long and end in dots."""
    return [line for line in text.splitlines()[1:] if line.endswith("...")]
