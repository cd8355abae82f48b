"""Registered ops: one definition each, its fused backends, and the choice between them."""
