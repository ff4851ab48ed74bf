"""What a live optimizer really does to each parameter, measured on stand-ins."""
