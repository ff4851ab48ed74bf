"""Prototxt text to messages, with the place of each field. Knows no torch."""
