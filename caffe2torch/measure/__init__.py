"""What a step does to one number: the experiments to run on an optimizer, and what their outcome says. No torch."""
