"""Saved networks in use: loading, prediction, export. Starts no Ray."""
