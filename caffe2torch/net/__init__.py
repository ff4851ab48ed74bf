"""A net's messages to layers and learnable blobs, in Caffe's order. Knows no torch."""
