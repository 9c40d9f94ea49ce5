"""Bases saved with quantized weights, dequantized one weight at a time as they load.

transformers can load these formats with packages that need a GPU, or with a separate package for
each. Here each format has a plain definition in torch, and transformers gets a state dict of the
usual names, whose weights are computed when they are read.
"""
