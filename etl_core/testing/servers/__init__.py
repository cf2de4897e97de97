"""Servers that this project's own tests and benchmarks start: of BigQuery, S3 with an Iceberg catalog, and Snowflake.

They are not in the wheel: whoever tests a pipeline or a destination of their own needs none of them.
"""
