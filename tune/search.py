"""Search settings with Ray Tune; a search that was stopped goes on when it is started again."""

from alpharec.pipeline import main

if __name__ == "__main__":
    main("search")
