"""Tool calls: the syntax in which a chat template writes them, and parsing them from completions.

There is no list of models. A template that supports tools renders conversations with calls, which
shows the syntax that its model was trained on (`probe.py`, `derive.py`). Calls are parsed in that
syntax (`call_reader.py`); where they are required, a grammar enforces it (`form.py`). Calls that
are messages to a tool have their own syntax, reader and grammar (`addressed.py`).
"""
