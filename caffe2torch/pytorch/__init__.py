"""East wing: everything torch means."""
