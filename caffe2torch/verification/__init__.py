"""Expected against observed: the rows and checks of the report, and what explains wrong ones."""
