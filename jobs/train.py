"""Train AlphaRec; the same run started again goes on from its last checkpoint."""

from alpharec.pipeline import main

if __name__ == "__main__":
    main("train")
