"""Requests to read texts to their end: labels, vectors, answers, scores."""
