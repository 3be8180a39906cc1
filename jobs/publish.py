"""Publish the trained model as an immutable bundle and move LATEST."""

from alpharec.pipeline import main

if __name__ == "__main__":
    main("publish")
