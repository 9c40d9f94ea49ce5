"""Base models that read a text as a whole: encoders, and encoders with a decoder behind them."""
