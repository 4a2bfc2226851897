"""A run: its folder, state, checkpoints, progress and trackers."""
