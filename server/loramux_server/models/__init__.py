"""Base models: transformers' modelling code with our attention and linear layers in it."""
