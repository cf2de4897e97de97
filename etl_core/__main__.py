"""`python -m etl_core` is `etl`."""

from __future__ import annotations

import sys

from etl_core.cli import main

sys.exit(main())
