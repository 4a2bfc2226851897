"""`python -m frskd_train COMMAND`, the same as the console script `frskd`."""

from frskd_train.cli import main

if __name__ == "__main__":
    main()
