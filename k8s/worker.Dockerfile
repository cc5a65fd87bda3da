# The image of workers and keepers, for those who have a registry. Without one: `envfarm image build --worker`.
# From the root of a checkout: docker build -f k8s/worker.Dockerfile -t REGISTRY/envfarm-worker .
FROM python:3.11-slim-bookworm
COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt '/src[docker,kubernetes]' && rm -r /src
# An environment's packages, or a wheel that brings environments:
# RUN pip install --no-cache-dir 'sqlglot>=25'
USER 1000:1000
WORKDIR /tmp
ENV HOME=/tmp
ENTRYPOINT ["python3", "-m", "envfarm.worker"]
