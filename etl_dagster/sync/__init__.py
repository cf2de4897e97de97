"""Brings tables up to now: their assets, and the steps that copy them or wait for the stream."""
