"""OpenTelemetry traces: a span for each request that the model answers."""
