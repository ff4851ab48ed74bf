"""Which parameter of a model each learnable blob became."""
