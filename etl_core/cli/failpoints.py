"""`etl failpoints`: where ETL_FAILPOINTS can make a test process fail."""

from __future__ import annotations

from etl_core.cli.arguments import Arguments
from etl_core.cli.exit_status import DONE
from etl_core.cli.texts import put
from etl_core.replication.failpoint_actions import describe_failpoints


def failpoints(_: Arguments) -> int:
    describe_failpoints(put)
    return DONE
