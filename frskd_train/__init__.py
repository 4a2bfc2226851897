"""Training scripts: settings, data, checkpoints and run folders. The library itself is `frskd_timm`."""
