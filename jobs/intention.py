"""Measure a trained model with what users say they want: HR and NDCG by alpha; trains only if it must."""

from alpharec.pipeline import main

if __name__ == "__main__":
    main("intention")
