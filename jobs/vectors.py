"""Keep up the versions of title vectors: verify | gc | export."""

from alpharec.pipeline import keep_up

if __name__ == "__main__":
    keep_up()
