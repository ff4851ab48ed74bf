"""A solver to settings, and the rate at an iteration."""
