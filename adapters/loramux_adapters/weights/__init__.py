"""What is computed with the weights of adapters. Needs numpy."""
