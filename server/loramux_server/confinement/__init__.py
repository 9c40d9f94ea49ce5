"""Sandboxed processes that handle untrusted input, without files, sockets or child processes."""
