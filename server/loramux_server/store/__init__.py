"""What is registered, where its bytes are, and whether a base can serve it; imports no torch."""
