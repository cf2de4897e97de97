"""BigQuery as a destination."""
