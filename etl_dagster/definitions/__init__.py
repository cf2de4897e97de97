"""What a code location loads: everything of a pipeline in one call or one YAML file, and what is built on it."""
