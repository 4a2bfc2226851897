"""Outputs of a finished run: metrics, pictures, page, model card and other formats."""
