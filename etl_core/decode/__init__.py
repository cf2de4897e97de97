"""Frames to change batches: split into columns, collapsed to one final change per key, typed."""
