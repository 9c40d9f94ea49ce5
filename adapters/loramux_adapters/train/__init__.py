"""Adapters from examples: PEFT and transformers' Trainer. Needs the extra `train`."""
