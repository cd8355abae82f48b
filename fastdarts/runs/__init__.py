"""Implementation of the commands, from settings to the finished run."""
