"""Packed forward passes, the loss and the sharded optimizer."""
