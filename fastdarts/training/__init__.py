"""Training of one discrete network with labels."""
