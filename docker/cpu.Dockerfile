# The server for CPUs: docker build -f docker/cpu.Dockerfile -t verbatim .
#
# The first stage calls the scripts that ./run calls; the second holds the program, the libraries it needs and nothing else, and
# runs it as a user without rights. A model is mounted, not built in: docker run -v "$PWD/models:/models:ro" -p 50051:50051 verbatim
ARG BUILD_IMAGE=debian:12
ARG RUN_IMAGE=debian:12-slim

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
# Packages change seldom: a layer of their own.
COPY scripts/setup.sh scripts/
RUN bash scripts/setup.sh && rm -rf /var/lib/apt/lists/*
COPY . .
RUN ./run server cpu /image

FROM ${RUN_IMAGE}
COPY --from=build /image /opt/verbatim
ENV LD_LIBRARY_PATH=/opt/verbatim/lib
USER 65532:65532
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s CMD ["/opt/verbatim/bin/verbatim", "health"]
# SIGTERM, which `docker stop` sends, lets requests in flight finish: give it --stop-timeout 35.
ENTRYPOINT ["/opt/verbatim/bin/verbatim"]
CMD ["serve", "--host", "0.0.0.0", "--model", "/models/SmolLM2-135M-Instruct.Q4_1.gguf"]
