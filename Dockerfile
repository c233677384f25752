# What gke.sh runs; built by `launch/gke.sh install`.
FROM python:3.12-slim
WORKDIR /tclip
COPY . .
RUN pip install --no-cache-dir -e ".[tpu]"
