"""The wiring of a PyTorch model: what learns, and what feeds what."""
