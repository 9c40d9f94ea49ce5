"""Requests to continue a text: from the fields of a message to the pieces of an answer."""
