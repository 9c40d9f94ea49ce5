"""The engine: scheduler, batch, model and sampler behind one inbox and one outbox."""
