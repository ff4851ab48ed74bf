"""Blobs to parameters and buffers: names, then the place in the wiring, shapes always."""
