"""Keeps tables up to date: the run that streams, who streams, the sensor, and what a person decides about it."""
