"""Atomic writes, process pools and distributed training."""
