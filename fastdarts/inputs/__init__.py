"""Images of a run, and their loaders."""
