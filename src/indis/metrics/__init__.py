"""Distances between sets of samples."""
