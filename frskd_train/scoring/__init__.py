"""Scores of networks on a split."""
