"""WHAT each command does, from its settings to the finished run."""
