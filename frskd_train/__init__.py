"""What `train.py` is made of: settings, data, checkpoints, the run's folder. The library itself is `frskd_timm`."""
