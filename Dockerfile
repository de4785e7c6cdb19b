# CPU image: docker build -t mgkeras . && docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" mgkeras --help
FROM python:3.12-slim AS build
RUN python -m venv /opt/mgkeras
ENV PATH=/opt/mgkeras/bin:$PATH
WORKDIR /source
# wildcards, so that the build does not fail where one of the two is missing
COPY pyproject.toml setup.cfg setup.py LICENSE* README* ./
COPY mgkeras mgkeras
COPY cli cli
RUN pip install --no-cache-dir .

FROM python:3.12-slim
ENV PATH=/opt/mgkeras/bin:$PATH PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=3 HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
RUN useradd --uid 1000 --create-home mgkeras && mkdir /data && chown mgkeras /data
COPY --from=build /opt/mgkeras /opt/mgkeras
USER mgkeras
# the cohort, runs/ and the cache live here: mount a folder on it
WORKDIR /data
ENTRYPOINT ["mgkeras"]
