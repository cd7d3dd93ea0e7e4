"""The name that job scripts of earlier versions give to `commbench.measure.rank`; it goes with the next release."""

from commbench.measure.rank import main

if __name__ == "__main__":
    main()
