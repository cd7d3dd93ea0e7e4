"""`python -m commbench`: the same command line as the `commbench` script."""

from commbench.cli import main

if __name__ == "__main__":
    main()
