"""Bases that were saved with quantised weights, dequantised one weight at a time as they load.

transformers can load these formats with packages that need a GPU, or with one package for each.
Here each is a plain definition in torch, and what transformers gets is a state dict of usual names
whose weights are computed when it asks for them.
"""
