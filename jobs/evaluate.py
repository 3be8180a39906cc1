"""Measure the trained model on valid and test, beside most-popular."""

from alpharec.pipeline import main

if __name__ == "__main__":
    main("evaluate")
