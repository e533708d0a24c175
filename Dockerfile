# One image for flow runs, workers, Prefect's server, MLflow and inference. It needs the base image and the package index;
# Docker's builders (both) and Podman's or Buildah's can build it.
#
#   docker build -t ltsft:cpu  --build-arg TORCH=cpu  .
#   docker build -t ltsft:cuda --build-arg TORCH=cuda .
#
# BASE           a base with Python 3.11 as `python`; give a digest to build the same image again: python:3.11-slim-bookworm@sha256:...
# TORCH          cpu or cuda. On Linux the index has the CUDA build under the plain version, the CPU build under +cpu.
# TORCH_INDEX    where the CPU build is; an index of your own may have it, too
# PIP_INDEX_URL  your package index. Its certificate has to be known to the base.
# GIT_COMMIT     logged with each run, since the image has no checkout
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG PIP_INDEX_URL=https://pypi.org/simple
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_INDEX_URL=${PIP_INDEX_URL} \
    UV_NO_CACHE=1 UV_DEFAULT_INDEX=${PIP_INDEX_URL} UV_SYSTEM_CERTS=1 UV_HTTP_TIMEOUT=180 UV_PYTHON=/opt/ltsft/bin/python
# What builds stays here: the environment that is copied below has no pip.
RUN python -m venv /build && python -m venv --without-pip /opt/ltsft
ENV PATH=/build/bin:${PATH}
WORKDIR /src
COPY requirements/*.txt requirements/
RUN pip install --no-deps --requirement requirements/build.txt
# All packages before the code, so that a change of the code does not fetch them again.
RUN case "${TORCH}" in \
        cpu) uv pip install --no-deps --extra-index-url "${TORCH_INDEX}" --requirement requirements/torch-cpu.txt ;; \
        cuda) uv pip install --no-deps --requirement requirements/torch.txt ;; \
        *) echo "TORCH is cpu or cuda, got ${TORCH}" >&2; exit 1 ;; \
    esac
RUN uv pip install --no-deps --build-constraints requirements/build.txt \
        --requirement requirements/runtime.txt --requirement requirements/serving.txt
# The tests of the packages, headers for extensions in C and C++, and a protocol of Arrow: 0.4 GB that no run reads.
RUN cd /opt/ltsft/lib/python3.*/site-packages \
    && rm -r torch/include torch/test pyarrow/include pyarrow/*flight* \
    && find torch/bin -type f ! -name torch_shm_manager -delete \
    && find . -type f \( -name '*.h' -o -name '*.hpp' -o -name '*.pxd' -o -name '*.pyx' \) -delete \
    && find . -type d -name tests -prune -exec rm -r {} +
RUN uv pip check
# Byte code of what is used, and of nothing else: the image is read-only, so a run could not keep it.
COPY infra/image/used.py ./
RUN /opt/ltsft/bin/python used.py && echo /opt/code > "$(echo /opt/ltsft/lib/python3.*/site-packages)/code.pth"

# A layer of its own, so that a new version is a few megabytes to push and to pull.
FROM build AS code
COPY pyproject.toml README.md prefect.yaml ./
COPY ltsft ltsft
COPY tasks tasks
COPY flows flows
RUN uv pip install --no-deps --build-constraints requirements/build.txt --target /opt/code . \
    && /opt/ltsft/bin/python -m compileall -q /opt/code \
    && cd / && /opt/ltsft/bin/python /src/used.py ltsft tasks flows

FROM ${BASE}
ARG GIT_COMMIT=""
RUN groupadd --gid 10001 ltsft && useradd --uid 10001 --gid 10001 --home-dir /app/work/home --no-create-home ltsft
COPY --from=build /opt/ltsft /opt/ltsft
COPY --from=code /opt/code /opt/code
WORKDIR /app
COPY configs configs
COPY prefect.yaml ./
COPY infra/work-pools infra/work-pools
# A clone that only its owner may read gives files that only root may read.
RUN chmod -R a+rX /app && mkdir -p /app/work /cache && chown 10001:10001 /app/work /cache
ENV PATH=/opt/code/bin:/opt/ltsft/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DO_NOT_TRACK=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    MLFLOW_DISABLE_TELEMETRY=true \
    LTSFT_GIT_COMMIT=${GIT_COMMIT}
USER 10001:10001
CMD ["ltsft", "--help"]
