"""WHICH images a run takes, and what makes batches of them."""
