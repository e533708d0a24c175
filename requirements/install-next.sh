#!/bin/sh
# Makes a virtual environment with the newest packages that the ranges of pyproject.toml allow: requirements/install-next.sh FOLDER
# It says which differ from the locked ones, so that a broken combination is met here before a user meets it.
set -eu
venv=$1
cd "$(dirname "$0")/.."
export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}" UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-https://pypi.org/simple}}"
rm -rf "$venv"
uv venv --quiet --python "${PYTHON:-python3.11}" "$venv"
export UV_PYTHON="$venv/bin/python"
uv pip install --quiet --upgrade --editable '.[dev]'
uv pip freeze --exclude-editable | sort > "$venv/newest"
sed -nE 's/^([a-z0-9-]+==[^ ;]+).*/\1/p' requirements/*.txt | sort -u > "$venv/locked"
echo "Newer than locked:"
comm -23 "$venv/newest" "$venv/locked"
