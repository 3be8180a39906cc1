"""Say what memory and time training takes, before it runs: at a size given, or of the configured job."""

from alpharec.pipeline import print_estimate

if __name__ == "__main__":
    print_estimate()
