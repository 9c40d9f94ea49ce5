"""Tools: how a chat template writes calls of them, and finding calls in what a model writes.

No list of models is kept. A template that knows of tools is given a conversation with calls, and
how it writes them (`finder.py`, `derive.py`) is what its model was trained to write: calls are read
in that form (`call_reader.py`), and where they are demanded, written in it (`form.py`). Those that
are messages to a tool have a form, a reader and a grammar of their own (`addressed.py`).
"""
