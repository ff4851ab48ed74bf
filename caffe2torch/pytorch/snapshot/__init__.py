"""Weights and training state: Caffe's into torch, and checkpoints of our own."""
