"""Requests that read texts without generating: labels, embeddings, answers, scores."""
