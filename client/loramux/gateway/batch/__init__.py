"""Batch files of requests for OpenAI's API, answered by a loramux server.

Requires the `gateway` extra: the gateway's application answers each request, in process.
"""

from loramux.gateway.batch.answered import Answered, OutputFile
from loramux.gateway.batch.lines import ChangedFileError, Line, RequestFile, WrongLineError
from loramux.gateway.batch.run import Progress, answer_all

__all__ = [
    "Answered",
    "ChangedFileError",
    "Line",
    "OutputFile",
    "Progress",
    "RequestFile",
    "WrongLineError",
    "answer_all",
]
