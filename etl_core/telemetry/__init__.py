"""What a pipeline does and how it stands, for monitoring: metrics for Prometheus, traces by OpenTelemetry's API.

Both are extras, and both only look: nothing that fails here ends or delays a copy or the stream.
"""
