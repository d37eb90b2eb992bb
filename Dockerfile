# CHARM-JAX on a CPU: the web page and HTTP interface by default, any command of charm-jax if it is named.
# Debian's Python is the one that the tests run on. docker/requirements*.txt lock every package.
FROM debian:bookworm-slim AS build

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/build \
    && python3 -m venv /opt/charm-jax

COPY docker/requirements-build.txt docker/requirements.txt /locks/
RUN /opt/build/bin/pip install --no-cache-dir --require-hashes -r /locks/requirements-build.txt \
    && /opt/charm-jax/bin/pip install --no-cache-dir --require-hashes -r /locks/requirements.txt

COPY . /source
WORKDIR /source
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-index --no-build-isolation -w /wheels . \
    && /opt/charm-jax/bin/pip install --no-cache-dir --no-deps --no-index /wheels/*.whl \
    && /opt/charm-jax/bin/pip check

FROM debian:bookworm-slim

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin charm-jax \
    && install --directory --mode 1777 /cache

COPY --from=build /opt/charm-jax /opt/charm-jax

# /cache alone is written to: compiled programs, which make the next start quick.
ENV PATH=/opt/charm-jax/bin:$PATH \
    XDG_CACHE_HOME=/cache \
    MPLCONFIGDIR=/cache/matplotlib
VOLUME /cache
WORKDIR /work
USER 10001

EXPOSE 8000
HEALTHCHECK --start-period=120s --timeout=5s \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]

# A model folder of `charm-jax export --format portable` is mounted at /model.
ENTRYPOINT ["charm-jax"]
CMD ["serve", "/model", "--host", "0.0.0.0"]
