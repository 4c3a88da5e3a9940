# syntax=docker/dockerfile:1
# The image of anyscale.yaml, not tried yet: Anyscale's own, with the package among its packages. That of Dockerfile does
# not do there: its PATH hides Anyscale's packages, and its Ray wants a token that Anyscale does not give. From the
# repository root:
#
#   docker build --file cluster/anyscale.Dockerfile --tag REGISTRY/prunefuse-anyscale:ray2.60.0-torch2.14.1 .

FROM anyscale/ray:2.60.0-slim-py311

# Optional dependencies of pyproject.toml, separated by commas. OpenVINO scores fastest on CPUs.
ARG EXTRAS="openvino"

COPY --chown=ray pyproject.toml constraints.txt README.md LICENSE /home/ray/prunefuse/
COPY --chown=ray prunefuse_ray /home/ray/prunefuse/prunefuse_ray
# The Ray that is there fulfills its pin, and stays.
RUN pip install --no-cache-dir --constraint /home/ray/prunefuse/constraints.txt "/home/ray/prunefuse${EXTRAS:+[$EXTRAS]}"
