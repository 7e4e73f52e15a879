# Builds podwire's wheel, and an image that has it installed.
# BASE is any image with Python 3.11 or later and pip.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY cni_plugin cni_plugin
COPY ipam ipam
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
COPY --from=build /wheels /wheels
RUN python3 -m pip install --no-cache-dir /wheels/*.whl && rm -rf /wheels
ENTRYPOINT ["podwire"]
CMD ["--help"]
