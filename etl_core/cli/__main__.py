"""`python -m etl_core.cli` is `etl`."""

from __future__ import annotations

import sys

from etl_core.cli import main

sys.exit(main())
