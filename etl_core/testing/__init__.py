"""Public test utilities, for our own tests and for people who write destinations.

`etl_core.testing.postgres` runs a real PostgreSQL without Docker. In a conftest.py:

    @pytest.fixture(scope="session")
    def postgres():
        with postgres_from_environment() as server:
            yield server

    @pytest.fixture
    def database(postgres):
        database = create_database(postgres)
        yield database
        database.drop()

Then `database.execute(sql)` prepares the source, `database.dsn` is where to connect, `postgres.restart()` and
`postgres.crash()` are what a pipeline must survive. ETL_PG_SOURCE, ETL_PG_VERSION and
ETL_PG_TLS choose another PostgreSQL.

Installed with `pip install 'etl-dagster[testing]'`.
"""
