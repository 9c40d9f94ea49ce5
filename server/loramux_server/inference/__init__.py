"""Generated from protos/inference. Only the server may import it; see protos/generate.py."""
