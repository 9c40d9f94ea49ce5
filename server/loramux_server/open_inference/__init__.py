"""The Open Inference Protocol: parsing of requests, and building of responses.

Each text becomes one request to GenerationService, so that all its rules apply here, too. Requests
are parsed by `parsed_request.py`, with `tensors.py` and `sampling.py`; `model.py` resolves model
names, and `answers.py` builds responses.
"""
