"""What a bundle is: model, options, ports, cases, vectors, files. The only part of the exporter that runners import."""
