#!/bin/sh
# Makes a virtual environment with the locked packages and this checkout: requirements/install.sh FOLDER
# Adds to it what the site of docs/ needs: requirements/install.sh FOLDER docs
# uv does it where it is there, else pip; both install the same files, and nothing is resolved.
#
# PYTHON       the Python to use
# TORCH        cpu: the CPU build from TORCH_INDEX; cuda: what PyPI has; empty: the CPU build if pip finds one, else PyPI's
# TORCH_INDEX  where the CPU build is, if not at PyTorch's own index
set -eu
venv=$1
cd "$(dirname "$0")/.."
if command -v uv > /dev/null; then
    # uv reads none of pip's settings.
    export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}" UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-https://pypi.org/simple}}"
    [ -e "$venv/bin/python" ] || uv venv --quiet --python "${PYTHON:-python3.11}" "$venv"
    install() { uv pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation "$@"; }
else
    [ -e "$venv/bin/pip" ] || "${PYTHON:-python3.11}" -m venv "$venv"
    install() { "$venv/bin/pip" --disable-pip-version-check install --quiet --no-compile --no-deps --no-build-isolation "$@"; }
fi
if [ "${2:-}" = docs ]; then
    install --requirement requirements/docs.txt
    exit
fi
install --requirement requirements/build.txt
install --requirement requirements/runtime.txt --requirement requirements/serving.txt --requirement requirements/dev.txt
case "${TORCH:-}" in
    cpu)
        install --extra-index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" --requirement requirements/torch-cpu.txt
        ;;
    cuda) install --requirement requirements/torch.txt ;;
    "")
        install --requirement requirements/torch-cpu.txt 2> /dev/null || {
            echo "The package index has no CPU build of torch: taking PyPI's, with CUDA on Linux (make install TORCH=cpu is smaller)."
            install --requirement requirements/torch.txt
        }
        ;;
    *)
        echo "TORCH is cpu or cuda, got $TORCH" >&2
        exit 1
        ;;
esac
install --editable .
