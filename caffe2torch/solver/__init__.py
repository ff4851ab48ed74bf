"""A solver's settings, its rate at an iteration, its update rule in scalars. Knows no torch."""
