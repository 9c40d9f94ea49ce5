"""Files of requests for OpenAI's API, answered one by one by a loramux server.

Needs what the gateway needs: each request is answered as the gateway would, without its socket.
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
