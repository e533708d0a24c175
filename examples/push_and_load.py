"""Push an SFT to a model hub and load it from there: `python examples/push_and_load.py FOLDER OWNER/NAME`."""

import sys

from huggingface_hub import snapshot_download

from ltsft import load_sft, push_folder

folder, repository = sys.argv[1:]
print(push_folder(folder, repository))  # private; the token is the one of `hf auth login` or HF_TOKEN
print(load_sft(snapshot_download(repository)))
