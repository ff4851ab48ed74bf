"""Caffe's weights and solver states, and checkpoints of our own."""
