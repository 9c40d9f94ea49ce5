"""Forms that a text must have: what they are, and the process that keeps texts on their way."""
