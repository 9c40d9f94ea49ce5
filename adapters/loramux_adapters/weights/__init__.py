"""Computations with the weights of adapters. Needs numpy."""
