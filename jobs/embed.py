"""Turn every distinct title into a vector."""

from alpharec.pipeline import main

if __name__ == "__main__":
    main("embed")
