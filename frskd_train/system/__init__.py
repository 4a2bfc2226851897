"""The machine and the processes of a run: device, launchers, signals, exits, and what torch computes slowly there."""
