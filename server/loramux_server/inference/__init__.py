"""Code generated from protos/inference, for the server only; see protos/generate.py."""
