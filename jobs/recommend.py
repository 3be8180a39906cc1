"""Write lists of recommended items from a published bundle; needs no training data."""

from alpharec.pipeline import main

if __name__ == "__main__":
    main("recommend")
