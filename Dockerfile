# syntax=docker/dockerfile:1
# One image for flow runs, workers, the tracking server and inference. It needs the base image and the package index.
#
#   docker build -t ltsft:cpu  --build-arg TORCH=cpu  .
#   docker build -t ltsft:cuda --build-arg TORCH=cuda .
#
# BASE           the base image; give a digest to build the same image again: python:3.11-slim-bookworm@sha256:...
# TORCH          cpu or cuda. On Linux the index has the CUDA build under the plain version, the CPU build under +cpu.
# TORCH_INDEX    where the CPU build is; an index of your own may have it, too
# PIP_INDEX_URL  your package index
# GIT_COMMIT     logged with each run, since the image has no checkout
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG PIP_INDEX_URL=https://pypi.org/simple
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_INDEX_URL=${PIP_INDEX_URL}
RUN python -m venv /opt/ltsft
ENV PATH=/opt/ltsft/bin:${PATH}
WORKDIR /src
COPY constraints.txt pyproject.toml README.md ./
# All pins first, so that a change of the code does not fetch them again. The CUDA libraries are left out of a CPU image.
RUN case "${TORCH}" in \
        cuda) pip install --no-deps --requirement constraints.txt ;; \
        cpu) grep -Ev '^(torch|triton|nvidia-|cuda-)' constraints.txt > cpu.txt \
            && pip install --no-deps --requirement cpu.txt \
            && pip install --no-deps --extra-index-url "${TORCH_INDEX}" "torch==$(sed -n 's/^torch==//p' constraints.txt)+cpu" ;; \
        *) echo "TORCH is cpu or cuda, got ${TORCH}" >&2; exit 1 ;; \
    esac
COPY ltsft ltsft
COPY tasks tasks
COPY flows flows
# CUDA's own libraries are no pins of ours: with them missing, this line fetches those that torch names.
RUN pip install --constraint constraints.txt '.[cluster]' && pip check

FROM ${BASE}
ARG GIT_COMMIT=""
RUN groupadd --gid 10001 ltsft && useradd --uid 10001 --gid 10001 --home-dir /app/work/home --no-create-home ltsft
COPY --from=build /opt/ltsft /opt/ltsft
WORKDIR /app
COPY configs configs
COPY prefect.yaml ./
COPY infra/work-pools infra/work-pools
RUN mkdir -p /app/work /cache && chown 10001:10001 /app/work /cache
ENV PATH=/opt/ltsft/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DO_NOT_TRACK=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    MLFLOW_DISABLE_TELEMETRY=true \
    LTSFT_GIT_COMMIT=${GIT_COMMIT}
USER 10001:10001
CMD ["ltsft", "--help"]
