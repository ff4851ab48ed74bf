"""A net to its learnable blobs: layers of every age, tables of types, sizes, sharing."""
