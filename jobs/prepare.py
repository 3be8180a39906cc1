"""Read, check, filter and split the input; print the data report."""

from alpharec.pipeline import main

if __name__ == "__main__":
    main("prepare")
