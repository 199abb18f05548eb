"""`python -m nlpstack` is the `nlpstack` command."""

from nlpstack.cli import run

if __name__ == "__main__":
    run()
