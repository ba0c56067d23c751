# Judges bundles: ONNX Runtime and what compare needs, without PyTorch. docker build -t kvparity .
FROM python:3.12-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --wheel-dir /wheels .

FROM python:3.12-slim
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-index --find-links /wheels kvparity && rm -r /wheels && useradd --create-home judge
USER judge
WORKDIR /home/judge
ENTRYPOINT ["kvparity"]
CMD ["--help"]
