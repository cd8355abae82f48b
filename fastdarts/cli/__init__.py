"""HOW a command line becomes settings, a rank and an exit status."""
