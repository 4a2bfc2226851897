"""Outputs of a finished run: metrics, pictures, model card, other formats, and a repository on the Hub."""
