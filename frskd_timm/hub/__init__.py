"""The Hub side of a student: its card and pictures, publishing it, and other formats."""
