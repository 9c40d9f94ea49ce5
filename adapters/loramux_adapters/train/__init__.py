"""Training of adapters with PEFT and transformers' Trainer. Needs the extra `train`."""
