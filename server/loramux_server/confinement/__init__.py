"""Processes that work on what strangers wrote, without files, sockets or other processes."""
