"""Chat: messages -> text rendered by a chat template -> tokens.

Templates come with models and adapters, and are untrusted programs. They run in sandboxed processes
(`worker.py`), and nothing in the contents of messages becomes a control token (`shield.py`,
`encoder.py`).
"""
