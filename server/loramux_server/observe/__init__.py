"""What is written down of calls: a line for each, and a lasting one for those that act."""
