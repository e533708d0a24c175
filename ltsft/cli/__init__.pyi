from ltsft.cli.main import app as app
