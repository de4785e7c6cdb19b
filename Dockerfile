# CPU:      docker build -t mgkeras .
# GPU:      docker build -t mgkeras:gpu --build-arg DEVICE=gpu .
# serving:  docker build -t mgkeras-serving --target serving .
# Then:     docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" mgkeras --help
ARG TF_SERVING=2.20.0

FROM python:3.12.12-slim-bookworm AS base

FROM base AS build
RUN python -m venv /opt/mgkeras
ENV PATH=/opt/mgkeras/bin:$PATH
WORKDIR /source
COPY pyproject.toml setup.cfg setup.py README.md LICENSE ./
COPY mgkeras mgkeras
COPY cli cli
COPY docker docker
# cpu or gpu: the same TensorFlow, with NVIDIA's CUDA libraries for gpu
ARG DEVICE=cpu
# versions and hashes are those of the lock file, which `make lock` makes anew from setup.cfg; the cache spares a
# rebuild the downloads and is no part of the image
RUN --mount=type=cache,target=/root/.cache/pip \
    case "$DEVICE" in \
        cpu|gpu) ;; \
        *) echo "expected DEVICE=cpu or DEVICE=gpu. Received: DEVICE=$DEVICE" >&2; exit 1 ;; \
    esac \
    && pip install --require-hashes --only-binary :all: -r "docker/requirements-$DEVICE.txt" \
    && pip install --no-deps --no-build-isolation . \
    && pip check

# serves an export of `mgkeras export`, mounted on /models/NAME, with MODEL_NAME=NAME
FROM tensorflow/serving:${TF_SERVING} AS serving
COPY docker/batching-exams.config docker/batching-cubes.config docker/model-available.sh /etc/mgkeras/
USER 1000:1000
# gRPC and REST
EXPOSE 8500 8501
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=3 \
    CMD ["bash", "/etc/mgkeras/model-available.sh"]
# added to the image's own flags, which name the ports and the model; exams are large and may wait in the queue
CMD ["--enable_batching=true", "--batching_parameters_file=/etc/mgkeras/batching-exams.config", \
     "--rest_api_timeout_in_ms=120000"]

# the last stage is what `docker build .` makes
FROM base AS mgkeras
ENV PATH=/opt/mgkeras/bin:$PATH PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=3 HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
COPY --from=build /opt/mgkeras /opt/mgkeras
# open to any --user; the cohort, runs/ and the cache live here: mount a folder on it
RUN mkdir -m 1777 /data
USER 1000:1000
WORKDIR /data
# as the first process of a container Python ignores SIGTERM; at SIGINT mgkeras stops and says how to go on
STOPSIGNAL SIGINT
ENTRYPOINT ["mgkeras"]
