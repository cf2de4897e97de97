"""PostgreSQL logical replication run by Dagster: an asset per table, a supervised stream, resources, checks.

Importing this package connects to nothing and loads neither Arrow nor a database driver.
"""

from dagster_shared.libraries import DagsterLibraryRegistry

from etl_core import __version__

DagsterLibraryRegistry.register("etl-dagster", __version__, is_dagster_package=False)
