"""What Dagster's pages say of tables and the slot: reports, checks and their verdicts."""
