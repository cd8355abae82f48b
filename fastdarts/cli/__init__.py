"""Command lines: from arguments to settings, rank and exit status."""
