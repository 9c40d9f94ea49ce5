"""The Open Inference Protocol: what its messages ask for and how they are answered.

Texts go to GenerationService one by one, so that all that holds there holds here. `tensors.py` and
`sampling.py` read a request, `asked.py` says what it asks for, `model.py` whose name that is,
`answers.py` what is said.
"""
