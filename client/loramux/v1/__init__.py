"""Messages and stubs generated from protos/loramux/v1; see protos/generate.py."""
