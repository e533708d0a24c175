"""`python -m ltsft.cli`: the `ltsft` command."""

from ltsft.cli.main import app

app()
