"""Fused operations: one file per op, with its function, definition, autograd and backends."""
