"""Chat: messages -> the text that a template makes of them -> tokens.

Templates come with models and adapters, and are programs of strangers. They run in processes of
their own (`worker.py`), and nothing in the contents of messages becomes a control token
(`shield.py`, `encoder.py`).
"""
