# The server for NVIDIA GPUs: docker build -f docker/cuda.Dockerfile -t verbatim-cuda .
#
# As cpu.Dockerfile, with CUDA 13.0 from NVIDIA's repository for Debian 12. The machine needs a driver for CUDA 13 and the NVIDIA
# Container Toolkit: docker run --gpus all -v "$PWD/models:/models:ro" -p 50051:50051 verbatim-cuda
ARG BUILD_IMAGE=debian:12
ARG RUN_IMAGE=debian:12-slim

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
ARG CUDA_KEYRING=https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/cuda-keyring_1.1-1_all.deb
ADD ${CUDA_KEYRING} /tmp/cuda-keyring.deb
COPY scripts/setup.sh scripts/
RUN bash scripts/setup.sh && dpkg -i /tmp/cuda-keyring.deb && apt-get update && \
    apt-get install -y --no-install-recommends cuda-nvcc-13-0 cuda-cudart-dev-13-0 cuda-cccl-13-0 libcublas-dev-13-0 && \
    rm -rf /var/lib/apt/lists/*
COPY . .
# The library of throughput's matrix products is opened when the server starts, so the linker does not know of it.
RUN ./run server cuda /image && cp -L /usr/local/cuda-13.0/lib64/libcublasLt.so.13 /image/lib/

FROM ${RUN_IMAGE}
COPY --from=build /image /opt/verbatim
ENV LD_LIBRARY_PATH=/opt/verbatim/lib NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=6s --start-period=600s CMD ["/opt/verbatim/bin/verbatim", "health"]
ENTRYPOINT ["/opt/verbatim/bin/verbatim"]
CMD ["serve", "--host", "0.0.0.0", "--device", "cuda", "--model", "/models/SmolLM2-135M-Instruct.Q4_1.gguf"]
