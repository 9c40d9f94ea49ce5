"""Base models: transformers' modelling code with our attention and our linear layers in it."""
