"""Run all stages from files to recommendations, skipping what is already done; print a summary."""

from alpharec.pipeline import main

if __name__ == "__main__":
    main("pipeline")
