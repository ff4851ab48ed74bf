"""Prototxt text to messages: fields with their places, and what no schema knows as notes."""
