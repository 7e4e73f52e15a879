# podwire's image: the self-contained executable (docs/executable.md), and nothing else.
#
#   make image
#
# BASE: Debian 12, whose CPython goes into the executable. Without a network to build in: a BASE that
# has PACKAGES already, and what `make supplies` puts into build/supplies.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
ARG PACKAGES="python3.11 python3.11-venv gcc libc6-dev make"
RUN dpkg --status ${PACKAGES} >/dev/null 2>&1 || { \
        apt-get update && \
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
            ca-certificates ${PACKAGES}; \
    }
WORKDIR /src
# One file that is there for certain: the folder may be missing.
COPY pyproject.toml build/supplie[s] /supplies/
# Only what podwire depends on: podwire itself is packed from its source.
RUN python3.11 -m venv /venv && \
    /venv/bin/python -c 'import tomllib; \
project = tomllib.load(open("/supplies/pyproject.toml", "rb"))["project"]; \
print(*project["dependencies"], *project["optional-dependencies"].get("kubernetes", ()), sep="\n")' \
        > /supplies/requirements.txt && \
    if ls /supplies/*.whl >/dev/null 2>&1; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=/supplies; fi && \
    /venv/bin/pip install --no-cache-dir --disable-pip-version-check -q -r /supplies/requirements.txt
COPY pyproject.toml LICENSE ./
COPY launcher launcher
COPY ipam ipam
COPY cni_plugin cni_plugin
# The folders are for `docker run` without volumes: the executable unpacks below /run or /var/lib.
RUN for found in /supplies/micropython*; do \
        if [ -e "$found" ]; then export MICROPYTHON_SRC="$found"; fi; \
    done && \
    mkdir -p /image/run /image/var/lib /image/tmp && chmod 1777 /image/tmp && \
    /venv/bin/python -m launcher.build --cache /tmp/launcher --output /image/podwire

FROM scratch
ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title="podwire" \
      org.opencontainers.image.description="Pod networking for Kubernetes: CNI plugin and agent" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /image/ /
ENTRYPOINT ["/podwire"]
CMD ["--help"]
